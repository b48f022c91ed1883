"""Products and other ops: right against float64, and a row's bits whatever is around it."""

from __future__ import annotations

import math

import torch

from ...kernels import ops, reference
from ...kernels.gpu import ops as gpu_ops
from ...kernels.gpu.architecture import architecture_of
from ...kernels.gpu.launch import run_all
from ...kernels.gpu.layout import to_gpu
from ...kernels.gpu.linear import product_work, tree_nodes
from ...kernels.gpu.peers import add_planes_of_peers, peer_tree
from ...kernels.gpu.table import Block, product_blocks
from ...kernels.native import native
from ...kernels.weights import layout
from ...kernels.weights.weight import PackedWeight
from ...runtime.collectives.tree import subtree_merges, sum_root, sum_subtrees
from ...shard.plan.atoms import atoms_of_rank, complete_subtrees
from .place import Place, Report, Sizes, require

ATOMS = 8
FIRST = ("int4", "bfloat16")
DEGREES = (1, 3, 8)
SEED = 11


def weight_of(kind: str, atoms: range, sizes: Sizes) -> PackedWeight:
    """The part of one random weight `[n, k]` that belongs to some atoms."""
    torch.manual_seed(SEED)
    n, k, group = sizes.n, sizes.k, sizes.group
    width = k // ATOMS
    columns = slice(atoms.start * width, atoms.stop * width)
    values = torch.randn(n, k).bfloat16()
    bits = 4 if kind.startswith("int4") else 8
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    scales, zeros = torch.rand(n, k // group).half(), torch.randint(0, 17, (n, k // group))
    if kind == "bfloat16":
        ends = [width * i for i in range(len(atoms) + 1)]
        return layout.pack_dense(values[:, columns], segments=ends)
    step = width if kind in ("int4 channel", "int8 channel", "w8a8") else group
    groups = slice(columns.start // group, columns.stop // group, step // group)
    runs = [(begin, begin + step) for begin in range(0, columns.stop - columns.start, step)]
    asymmetric = kind.endswith("asymmetric")
    return layout.pack_quantized(
        codes[:, columns].contiguous(),
        scales[:, groups].contiguous(),
        zeros[:, groups].to(torch.uint8).contiguous() if asymmetric else None,
        bits=bits,
        runs=runs,
        segments=[len(runs) * i // len(atoms) for i in range(len(atoms) + 1)],
        activation="int8" if kind == "w8a8" else "float",
    )


def inputs(rows: int, sizes: Sizes) -> torch.Tensor:
    """The same bf16 `[rows, k]` in every process."""
    torch.manual_seed(SEED + 1)
    return torch.randn(rows, sizes.k).bfloat16()


def product(
    x: torch.Tensor,
    weight: PackedWeight,
    device: torch.device,
    merges: list[int] | None,
    block: Block | None = None,
) -> torch.Tensor:
    """What the kernels make of x `[M, K]`: fp32 `[planes, M, N]`, on the CPU."""
    nodes = None if merges is None else tree_nodes(merges)
    planes = weight.segments if nodes is None else len(nodes)
    out = torch.full((planes, len(x), weight.n), math.nan, device=device)
    work = product_work(x.to(device), to_gpu(weight, device), out, nodes, block=block)
    run_all(work.launches)
    return out.cpu()


def build(at: Place, report: Report) -> None:
    """The compiled module and triton are there, the GPU has kernels, and the smallest one runs."""
    import triton

    native()
    if not at.rehearsal:
        report.row(architecture=architecture_of(at.device).name)
    torch.manual_seed(SEED)
    leaves = torch.randn(ATOMS, 3, 257) * 10.0 ** torch.randint(-4, 5, (ATOMS, 3, 257))
    owned = [atoms_of_rank(ATOMS, 3, rank) for rank in range(3)]
    nodes = [complete_subtrees(ATOMS, atoms) for atoms in owned]
    planes = torch.zeros(3, max(map(len, nodes)), 3, 257)
    for rank, atoms in enumerate(owned):
        sums = sum_subtrees(leaves[atoms.start : atoms.stop], atoms, ATOMS)
        planes[rank, : len(sums)] = torch.stack(sums)
    out = torch.full((3, 257), math.nan, device=at.device)
    add_planes_of_peers(planes.to(at.device), out, peer_tree(nodes)).run()
    wanted = sum_root([(0, ATOMS)], sum_subtrees(leaves, range(ATOMS), ATOMS), ATOMS)
    require(torch.equal(out.cpu(), wanted), "add_planes: not the bits of the tree")
    report.row(triton=triton.__version__, torch=torch.__version__)


def first_product(at: Place, report: Report) -> None:
    """int4, one row, against float64."""
    _values("int4", (1,), at, report)


def row_bits(at: Place, report: Report) -> None:
    """One row alone and among others, in every block of the table: equal bits."""
    for kind in FIRST:
        _row_bits(kind, at, report)


def degrees(at: Place, report: Report) -> None:
    """A program for all segments or one for each, and 1, 3 and 8 ranks after each other."""
    for kind in FIRST:
        _degrees(kind, at, report)


def all_weights(at: Place, report: Report) -> None:
    """Values and bits of every other kind of weight."""
    for kind in at.sizes.kinds:
        _values(kind, at.sizes.rows[:1] if at.rehearsal else at.sizes.rows, at, report)
        if kind not in FIRST and not at.rehearsal:
            _row_bits(kind, at, report)
            _degrees(kind, at, report)


def _values(kind: str, rows: tuple[int, ...], at: Place, report: Report) -> None:
    sizes = at.sizes
    weight = weight_of(kind, range(ATOMS), sizes)
    dense = reference.dense_segments(weight).transpose(1, 2)
    for count in rows:
        x = inputs(count, sizes)
        found = product(x, weight, at.device, None)
        if kind == "w8a8":
            require(torch.equal(found, ops.linear(x, weight)), f"{kind}, {count} rows: not the "
                    "bits of the CPU")  # fmt: skip
            report.row(kind=kind, rows=count, bits="of the CPU")
            continue
        bound = (sizes.k + 8) * 2.0**-24 * (x.double().abs() @ dense.abs())
        worst = float(
            ((found.double() - x.double() @ dense).abs() / bound).nan_to_num(math.inf).max()
        )
        require(worst <= 1, f"{kind}, {count} rows: {worst:.3g} times what rounding explains")
        report.row(kind=kind, rows=count, error_of_bound=worst)


def _row_bits(kind: str, at: Place, report: Report) -> None:
    sizes = at.sizes
    weight, root = weight_of(kind, range(ATOMS), sizes), subtree_merges(ATOMS, range(ATOMS))
    x = inputs(sizes.many_rows, sizes)
    wanted = product(x[-1:], weight, at.device, root)[0, -1]
    for rows in (*sizes.rows, sizes.many_rows):
        found = product(x[-rows:], weight, at.device, root)[0, -1]
        _same(found, wanted, f"{kind}: the last of {rows} rows against the row alone")
    blocks = product_blocks(architecture_of(at.device))
    for block in blocks:
        found = product(x[-sizes.block_rows :], weight, at.device, root, block)[0, -1]
        shape = f"{block.rows} x {block.columns}, {'loop' if block.loop else 'split'}"
        _same(found, wanted, f"{kind}: block {shape} against the row alone")
    report.row(kind=kind, rows=[*sizes.rows, sizes.many_rows], blocks=len(blocks))


def _degrees(kind: str, at: Place, report: Report) -> None:
    sizes = at.sizes
    root = subtree_merges(ATOMS, range(ATOMS))
    x = inputs(5, sizes)
    whole = weight_of(kind, range(ATOMS), sizes)
    wanted = product(x, whole, at.device, root)[0]
    blocks = product_blocks(architecture_of(at.device))
    for loop in (False, True):
        block = next((each for each in blocks if each.loop is loop), None)
        if block is not None:
            found = product(x, whole, at.device, root, block)[0]
            _same(found, wanted, f"{kind}: {'loop' if loop else 'split'} against the table's block")
    for degree in DEGREES:
        places, sums = [], []
        for rank in range(degree):
            owned = atoms_of_rank(ATOMS, degree, rank)
            own = x[:, owned.start * sizes.k // ATOMS : owned.stop * sizes.k // ATOMS].contiguous()
            part = weight_of(kind, owned, sizes)
            sums += list(product(own, part, at.device, subtree_merges(ATOMS, owned)))
            places += complete_subtrees(ATOMS, owned)
        _same(sum_root(places, sums, ATOMS), wanted, f"{kind}: tp {degree} against one rank")
    report.row(kind=kind, tp=list(DEGREES), schedules=["split", "loop"])


def _same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """Raises Wrong with how many bits-wise different elements there are, and the first."""
    differ = (found.view(torch.int32) != wanted.view(torch.int32)).flatten().nonzero()
    if len(differ):
        first = int(differ[0])
        require(
            False,
            f"{what}: {len(differ)} of {found.numel()} elements have other bits, the first is "
            f"number {first}: {found.flatten()[first].item()!r}, not "
            f"{wanted.flatten()[first].item()!r}",
        )


def other_ops(at: Place, report: Report) -> None:
    """Norm, silu * up, greedy choice and digest."""
    torch.manual_seed(SEED)
    x, weight = torch.randn(9, at.sizes.hidden), torch.randn(at.sizes.hidden)
    there, fp32 = x.to(at.device), torch.float32
    normed = gpu_ops.rms_norm(there, weight.to(at.device), 1e-6, fp32, add=None, bias=None)
    wanted = reference.rms_norm(x, weight, 1e-6)
    require(torch.allclose(normed.cpu().double(), wanted, 1e-5, 1e-6), "norm: wrong values")
    gated = gpu_ops.silu_mul(there, there, fp32).cpu()
    wanted = reference.silu_mul(x, x)
    require(torch.allclose(gated.double(), wanted, 1e-5, 1e-6), "silu * up: wrong values")
    logits = torch.randn(3, at.sizes.vocabulary)
    logits[1, 7], logits[2, [5, 9]] = math.nan, 99.0
    chosen = gpu_ops.greatest(logits.to(at.device))
    require(chosen == ops.greatest(logits), f"greedy choice: {chosen}, not {ops.greatest(logits)}")
    one, again, other = (gpu_ops.digest(tensor.to(at.device), 0) for tensor in (x, x.clone(), -x))
    require(one == again != other, "digest: does not tell tensors apart, or not always the same")
    report.row(ops=["norm", "silu * up", "greedy choice", "digest"])
