"""Every kernel in every configuration of an architecture, over tensors without memory.

The launches are those that run: only the tensors are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .architecture import Architecture
from .launch import Launch
from .linear import Node, product_work
from .table import Block, product_blocks
from .weight import CHUNK, TILE, GpuWeight

ATOMS = 8
N, K = 5120, 8192


@dataclass(frozen=True)
class Entry:
    """`name` says what it is, `same` which entries must add in the same order."""

    name: str
    same: str
    launch: Launch
    block: Block | None = None


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


def products(
    architecture: Architecture, forms: tuple[WeightForm, ...] = FORMS
) -> Iterator[Entry]:
    """Products of every form over every block of the table, as a row-parallel layer has them."""
    for form in forms:
        weight = meta_weight(form)
        dtypes = [torch.bfloat16, torch.float16]
        if form.kind in ("bfloat16", "float16"):
            dtypes = [getattr(torch, form.kind)]
        for dtype in dtypes:
            name = f"{form.name}, {str(dtype).removeprefix('torch.')}"
            for block in product_blocks(architecture):
                x = torch.empty(block.rows, K, dtype=dtype, device="meta")
                out = torch.empty(1, block.rows, N, device="meta")
                root = [Node(0, (ATOMS - 1).bit_length())]
                work = product_work(x, weight, out, root, block=block)
                for launch in work.launches:
                    kernel = launch.kernel.__name__
                    yield Entry(
                        f"{kernel}: {name}, blocks of {block.rows} x {block.columns}",
                        f"{kernel}: {name}",
                        launch,
                        block if "product" in kernel else None,
                    )
