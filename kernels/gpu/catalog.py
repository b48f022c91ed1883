"""Every kernel in every configuration of an architecture, over tensors without memory.

The launches are those that run: only the tensors are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..step.kv_cache import PAGE, KVCache
from . import moves, readout, reductions, rows
from .architecture import Architecture
from .attention import Chunks, Heads, attention_work
from .launch import Launch
from .linear import Node, Work, product_work
from .peers import Peer, RegionShape, TreeNode, add_planes_of_peers, touch_peers
from .table import Block, product_blocks
from .weight import CHUNK, TILE, GpuWeight

ATOMS = 8
N, K = 5120, 8192


@dataclass(frozen=True, kw_only=True)
class Entry:
    """`name` says what it is, `same` which entries must add up in the same order.

    `additions`: how many additions of blocks its tree has at least. `matrix`: whether it needs the
    matrix unit. `meets`: whether it meets its like on other devices. `spills`: whether sums may
    leave the registers outside of the loop over k. `basic`: one of the few that stand for the
    others.
    """

    name: str
    same: str
    launch: Launch
    additions: int = 0
    matrix: bool = False
    meets: bool = False
    spills: bool = False
    basic: bool = False


@dataclass(frozen=True, kw_only=True)
class WeightForm:
    """A way in which weights are stored; `group` 0 stands for one scale an atom."""

    kind: str
    group: int = 0
    zeros: bool = False
    scale: torch.dtype = torch.float16
    activation: str = "float"

    @property
    def name(self) -> str:
        if self.activation == "int8":
            return "w8a8"
        if self.kind not in ("int4", "int8"):
            return self.kind
        group = f"group {self.group}" if self.group else "channel"
        zeros = "asymmetric" if self.zeros else "symmetric"
        return f"{self.kind} {group} {zeros} {str(self.scale).removeprefix('torch.')} scales"


FORMS = (
    WeightForm(kind="int4", group=128),
    WeightForm(kind="int4", group=128, zeros=True),
    WeightForm(kind="int4", group=128, zeros=True, scale=torch.float32),
    WeightForm(kind="int4", group=64, zeros=True),
    WeightForm(kind="int4", group=32),
    WeightForm(kind="int4"),
    WeightForm(kind="int8", group=128),
    WeightForm(kind="int8", group=64, zeros=True),
    WeightForm(kind="int8"),
    WeightForm(kind="int8", activation="int8"),
    WeightForm(kind="bfloat16"),
    WeightForm(kind="float16"),
)


BASIC = (FORMS[0], FORMS[9], FORMS[10])


def meta_weight(form: WeightForm, n: int = N, k: int = K, segments: int = ATOMS) -> GpuWeight:
    """A weight of that form without memory; k is a multiple of 128 * segments."""

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, chunks = -(-n // (2 * TILE)) * 2 * TILE, k // CHUNK
    common = {"kind": form.kind, "n": n, "k": k, "packed_k": k, "activation": form.activation}
    common["offsets"] = empty(segments + 1, dtype=torch.int32)
    if form.activation == "int8":
        scales = empty(segments, rows, dtype=torch.float32)
        return GpuWeight(data=empty(rows, k, dtype=torch.int8), column_scales=scales, **common)
    if form.kind not in ("int4", "int8"):
        return GpuWeight(data=empty(rows, k, dtype=getattr(torch, form.kind)), **common)
    words = 16 if form.kind == "int4" else 32
    runs = k // form.group if form.group else segments
    fields = 2 if form.scale == torch.float32 else 1
    return GpuWeight(
        data=empty(rows // TILE, chunks, TILE, words, dtype=torch.int32),
        tables=empty(rows // TILE, runs, fields, TILE, dtype=torch.int32),
        scale_dtype=form.scale,
        zeros=form.zeros,
        unit=form.group or CHUNK,
        run_chunks=None if form.group else empty(runs + 1, dtype=torch.int32),
        **common,
    )


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def entries(architecture: Architecture) -> list[Entry]:
    """All kernels in all configurations, each once."""
    found = {entry.name: entry for entry in _products(architecture)}
    found |= {entry.name: entry for entry in (*_reordered(architecture), *_row_ops())}
    found |= {entry.name: entry for entry in (*_attention(), *_peers())}
    return list(found.values())


def _products(architecture: Architecture) -> Iterator[Entry]:
    """Products of every form over every block of the table, as a row-parallel layer has them."""
    root = Node(0, (ATOMS - 1).bit_length())
    for form in FORMS:
        weight = meta_weight(form)
        both = (torch.bfloat16, torch.float16)
        dense = form.kind not in ("int4", "int8")
        for dtype in (getattr(torch, form.kind),) if dense else both:
            for block in product_blocks(architecture):
                x = torch.empty(block.rows, K, dtype=dtype, device="meta")
                out = torch.empty(1, block.rows, N, device="meta")
                for launch in product_work(x, weight, out, [root], block=block).launches:
                    yield _of_product(launch, form, dtype, block)


def _of_product(
    launch: Launch, form: WeightForm, dtype: torch.dtype, block: Block, how: str = ""
) -> Entry:
    kernel, level = launch.kernel.__name__, launch.arguments.get("LEVEL", 0)
    product = "BM" in launch.arguments
    same = f"{kernel}: {form.name}, {short(dtype)}" if product else kernel
    blocks = f", {short(dtype)}"
    if product:
        blocks = f", blocks of {block.rows} x {block.columns}{', loop' if block.loop else ''}"
    return Entry(
        name=same + blocks + how,
        same=same,
        launch=launch,
        # A running sum in a loop has one addition for each level of the tree.
        additions=level if product else (1 << level) - 1,
        matrix=product,
        spills=product and block.spills,
        basic=dtype == torch.bfloat16 and form in BASIC,
    )


def _reordered(architecture: Architecture) -> Iterator[Entry]:
    """Products of weights whose inputs are in another order, with a bias; int8 activations with a
    scale that is known before."""
    root, block = Node(0, (ATOMS - 1).bit_length()), product_blocks(architecture)[0]
    gather = torch.empty(K, dtype=torch.int32, device="meta")
    x = torch.empty(block.rows, K, dtype=torch.bfloat16, device="meta")
    out = torch.empty(1, block.rows, N, device="meta")
    for form in BASIC:
        scale = 0.1 if form.activation == "int8" else None
        weight = dataclasses.replace(meta_weight(form), gather=gather, input_scale=scale)
        work = product_work(x, weight, out, [root], bias=out[0, 0], block=block)
        leaves = product_work(x, weight, out, None, bias=out[0, 0], block=block)
        for launch in (*work.launches, *leaves.launches):
            biased = ", bias" if launch.arguments.get("bias") is not None else ""
            yield _of_product(launch, form, torch.bfloat16, block, f", reordered{biased}")


def _row_ops() -> Iterator[Entry]:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(4, N)
    launches = {
        "greatest_rows": reductions.greatest(empty(4, 152064), empty(4, dtype=torch.int64)),
        "digest_words": reductions.digest(x, 0, empty(5, dtype=torch.int64)),
    }
    for dtype in (torch.bfloat16, torch.float16):
        normed, counts = empty(4, N, dtype=dtype), empty(2, dtype=torch.int64)
        words = empty(11, dtype=torch.int64)
        said = readout.step_launches(x, normed, normed, empty(4, 152064), counts, words, Work())
        launches |= {f"{launch.kernel.__name__}: {short(dtype)}": launch for launch in said}
    for dtype in (torch.bfloat16, torch.float16):
        name, weight, out = short(dtype), empty(N, dtype=dtype), empty(4, N, dtype=dtype)
        launches[f"rms_norm_rows: {name}"] = rows.rms_norm(x, weight, 1e-6, out)
        launches[f"rms_norm_rows: residual, {name}"] = rows.rms_norm(
            x, weight, 1e-6, out, add=x, bias=empty(N)
        )
        launches[f"silu_mul_rows: {name}"] = rows.silu_mul(x, x, out)
        cache = KVCache(empty(9, 8, 128, PAGE, dtype=dtype), empty(9, 8, PAGE, 128, dtype=dtype))
        for norm in (None, empty(128, dtype=dtype)):
            launches[f"rope_and_cache_rows: {'' if norm is None else 'normed, '}{name}"] = (
                rows.rope_and_cache(
                    x, empty(4, 1024), empty(4, 1024), out, cos=empty(99, 64), sin=empty(99, 64),
                    positions=empty(4, dtype=torch.int32), slots=empty(4, dtype=torch.int64),
                    cache=cache, q_norm=norm, k_norm=norm, eps=1e-6,
                )
            )  # fmt: skip
    index, gathered = empty(4, dtype=torch.int64), empty(3, 4, N)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        table = empty(9, N, dtype=dtype)
        launches[f"pick_rows: {short(dtype)}"] = moves.pick_rows(
            table, index, table[:4], first=9, count=9
        )
        launches[f"owned_rows: {short(dtype)}"] = moves.owned_rows(
            gathered.to(dtype), index, index[:3], x
        )
    launches["join_columns"] = moves.join_columns(gathered, index, x)
    launches["rms_norm_rows: residual alone"] = rows.rms_norm(x, None, 0.0, None, add=x)
    for name, launch in launches.items():
        yield Entry(name=name, same=name, launch=launch, basic=not name.endswith(" float16"))


def _attention() -> Iterator[Entry]:
    """Heads as those of a model of 14B parameters; a head of 64 as those of small ones."""
    for dtype in (torch.bfloat16, torch.float16):
        for head, query, kv in ((128, 40, 8), (64, 14, 2)):
            cache = KVCache(
                torch.empty(99, kv, head, PAGE, dtype=dtype, device="meta"),
                torch.empty(99, kv, PAGE, head, dtype=dtype, device="meta"),
            )
            heads = Heads.of([h * kv // query for h in range(query)], kv, "meta", head)
            q = torch.empty(32, query * head, dtype=dtype, device="meta")
            index = torch.empty(32, dtype=torch.int32, device="meta")
            for columns in (16, 32):
                chunks = Chunks(
                    rows=torch.empty(8, 2, dtype=torch.int32, device="meta"),
                    columns=columns,
                    stretches=4,
                )
                for split in (False, True):
                    work = attention_work(
                        q, cache, q, block_tables=index.view(4, 8), row_sequence=index,
                        positions=index, heads=heads, chunks=chunks, scale=0.1, split=split,
                    )  # fmt: skip
                    for launch in work.launches:
                        same = f"{launch.kernel.__name__}: head {head}, {short(dtype)}"
                        product = "BM" in launch.arguments
                        how = f", {columns} columns{', split' if split else ''}"
                        yield Entry(
                            name=same + how if product else same,
                            same=same,
                            launch=launch,
                            matrix=product,
                            basic=dtype == torch.bfloat16 and head == 128,
                        )


def _peers() -> Iterator[Entry]:
    """Sums and gathers of 2, 3, 4 and 8 devices; of three, some have two sums to add."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    odd: tuple[TreeNode, ...] = (
        (0, 1, 0, 0),
        (2, 0, 0, 1),
        (3, 0, 1, 0),
        (4, 1, 1, 1),
        (6, 1, 2, 0),
    )
    trees = {peers: tuple((rank, 0, rank, 0) for rank in range(peers)) for peers in (2, 4, 8)}
    for peers, tree in {**trees, 3: odd}.items():
        planes = 1 + max(node[3] for node in tree)
        peer = Peer(
            rank=1,
            shape=RegionShape(peers=peers, planes=planes),
            regions=empty(peers, dtype=torch.int64),
            counts=empty(64, dtype=torch.int32),
            status=empty(1, dtype=torch.int64),
            report=empty(1, dtype=torch.int64),
            patience_ns=60_000_000_000,
        )
        nodes, out = empty(planes, 4, N), empty(4, N)
        words = empty(4, N, dtype=torch.bfloat16)
        gathered = empty(peers, 4, N, dtype=torch.bfloat16)
        launches = {
            "reduce_over_peers": peer.all_reduce(nodes, out, tree, site=2, name="site"),
            "gather_over_peers": peer.all_gather(words, gathered, site=2, name="site"),
            "add_gathered": add_planes_of_peers(empty(peers, planes, 4, N), out, tree),
        }
        for kernel, launch in launches.items():
            name = f"{kernel}: {peers} peers"
            yield Entry(
                name=name,
                same=name,
                launch=launch,
                additions=0 if kernel == "gather_over_peers" else len(tree) - 1,
                meets=kernel != "add_gathered",
                basic=peers == 3,
            )
    touch = touch_peers(empty(3, dtype=torch.int64), empty(3, dtype=torch.int64), 1)
    yield Entry(name="touch_regions", same="touch_regions", launch=touch, basic=True)
