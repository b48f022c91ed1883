"""Products of activations and packed weights: which kernels run, over which blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton.language as tl

from isobit.errors import InputError

from .architecture import architecture_of
from .jit.dense_product import dense_product
from .jit.inputs import gather_inputs, quantize_inputs
from .jit.product import quantized_product
from .jit.tree import add_planes
from .launch import Launch, ceil_div
from .table import Block, product_block
from .unpack import unpacking
from .weight import GpuWeight

TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
HALVES = (torch.bfloat16, torch.float16)
MOST_LEVELS = 4
ROW_BLOCK = 1024


@dataclass(frozen=True)
class Node:
    """What is left of some segments: the root of the tree over 2^level of them."""

    first: int
    level: int


def tree_nodes(merges: list[int]) -> list[Node]:
    """The sums that merges leave (see `ops.linear`). Raises InputError E-KERNEL-SHAPE for a tree
    that is not a row of complete ones of up to 16 segments."""
    waiting: list[Node] = []
    for segment, count in enumerate(merges):
        waiting.append(Node(segment, 0))
        for _ in range(count):
            right = waiting.pop()
            left = waiting.pop() if waiting else None
            if left is None or left.level != right.level or left.level == MOST_LEVELS:
                raise InputError(
                    "E-KERNEL-SHAPE",
                    f"merges {merges}: the CUDA kernels add complete subtrees of up to "
                    f"{1 << MOST_LEVELS} segments",
                )
            waiting.append(Node(left.first, left.level + 1))
    return waiting


def check_dtypes(dtype: torch.dtype, weight: GpuWeight) -> None:
    """Raise InputError E-KERNEL-DTYPE where activations of `dtype` and a weight do not go
    together."""
    dense = weight.kind not in ("int4", "int8")
    if dtype not in HALVES or (dense and dtype != getattr(torch, weight.kind)):
        raise InputError(
            "E-KERNEL-DTYPE",
            f"linear: x is {dtype}, the weight {weight.kind}; the CUDA kernels take bfloat16 or "
            "float16 activations, and dense weights of the same dtype",
        )


@dataclass
class Work:
    """Launches in order and the memory between them."""

    launches: list[Launch] = field(default_factory=list)
    scratch: list[torch.Tensor] = field(default_factory=list)

    def empty(self, *shape: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
        made = torch.empty(shape, dtype=dtype, device=like.device)
        self.scratch.append(made)
        return made


def product_work(
    x: torch.Tensor,
    weight: GpuWeight,
    out: torch.Tensor,
    nodes: list[Node] | None,
    *,
    bias: torch.Tensor | None = None,
    block: Block | None = None,
    work: Work | None = None,
) -> Work:
    """Fills out fp32 `[planes, M, N]` from x `[M, K]`: a plane for every node, or every segment.

    bias fp32 `[N]` is added to every plane. `block` replaces the table's choice, which changes no
    bit. `work` says where memory between kernels comes from.
    """
    work = Work() if work is None else work
    if block is None:
        found = architecture_of(x.device)
        block = product_block(found, x.shape[0], weight.n, weight.segments)
    inputs, scales = _inputs(work, x, weight)
    if nodes is None:
        nodes = [Node(segment, 0) for segment in range(weight.segments)]
    level = max((node.level for node in nodes), default=0)
    if level == 0:
        if nodes:
            work.launches.append(
                _product(inputs, scales, weight, out, nodes[0], len(nodes), bias, block)
            )
    elif block.loop:
        for plane, node in zip(out, nodes, strict=True):
            work.launches.append(_product(inputs, scales, weight, plane, node, 1, bias, block))
    else:
        rows, segments = x.shape[0], weight.segments
        planes = work.empty(segments, rows, weight.n, dtype=torch.float32, like=x)
        leaf = Node(0, 0)
        work.launches.append(_product(inputs, scales, weight, planes, leaf, segments, None, block))
        for plane, node in zip(out, nodes, strict=True):
            work.launches.append(_addition(planes[node.first :], bias, plane, node.level))
    return work


def _inputs(
    work: Work, x: torch.Tensor, weight: GpuWeight
) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows = x.shape[0]
    if weight.activation == "int8":
        codes = work.empty(rows, weight.packed_k, dtype=torch.int8, like=x)
        scales = work.empty(weight.segments, rows, dtype=torch.float32, like=x)
        arguments = {
            "x": x,
            "gather": weight.gather,
            "offsets": weight.offsets,
            "codes": codes,
            "scales": scales,
            "M": rows,
            "K": weight.k,
            "packed_k": weight.packed_k,
            "input_scale": weight.input_scale or 0.0,
            "DYNAMIC": weight.input_scale is None,
            "BLOCK": ROW_BLOCK,
        }
        grid = (rows, weight.segments)
        work.launches.append(Launch(kernel=quantize_inputs, grid=grid, arguments=arguments))
        return codes, scales
    if weight.gather is None:
        return x, None
    packed = work.empty(rows, weight.packed_k, dtype=x.dtype, like=x)
    arguments = {
        "x": x,
        "gather": weight.gather,
        "out": packed,
        "K": weight.k,
        "packed_k": weight.packed_k,
        "BLOCK": ROW_BLOCK,
    }
    grid = (rows, ceil_div(weight.packed_k, ROW_BLOCK))
    work.launches.append(Launch(kernel=gather_inputs, grid=grid, arguments=arguments))
    return packed, None


def _product(
    x: torch.Tensor,
    scales: torch.Tensor | None,
    weight: GpuWeight,
    out: torch.Tensor,
    node: Node,
    planes: int,
    bias: torch.Tensor | None,
    block: Block,
) -> Launch:
    rows = x.shape[0]
    grid = (ceil_div(rows, block.rows), ceil_div(weight.n, block.columns), planes)
    arguments = {
        "x": x,
        "offsets": weight.offsets,
        "bias": bias,
        "out": out,
        "M": rows,
        "N": weight.n,
        "K": weight.packed_k,
        "first_segment": node.first,
        "LEVEL": node.level,
        "BM": block.rows,
        "BN": block.columns,
        "STAGES": block.stages,
    }
    kernel = dense_product
    if weight.tables is None:
        arguments |= {
            "values": weight.data,
            "input_scales": scales,
            "column_scales": weight.column_scales,
            "padded_n": weight.data.shape[0],
            "BK": 128 if weight.activation == "int8" else 64,
        }
    else:
        kernel = quantized_product
        assert weight.scale_dtype is not None
        codes = unpacking(weight.bits, weight.unit, TYPES[x.dtype])
        arguments |= {
            "words": weight.data,
            "tables": weight.tables,
            "run_chunks": weight.run_chunks,
            "chunks": weight.chunks,
            "runs": weight.runs,
            "BITS": weight.bits,
            "UNIT": weight.unit,
            "FIELDS": weight.tables.shape[2],
            "ZEROS": weight.zeros,
            "SCALE": TYPES[weight.scale_dtype],
            "ASSEMBLY": codes.assembly,
            "CONSTRAINTS": codes.constraints,
            "TYPES": codes.types,
            "BASE": codes.base,
            "NUMBER": codes.number,
        }
    return Launch(
        kernel=kernel, grid=grid, arguments=arguments, warps=block.warps, stages=block.stages
    )


def _addition(
    planes: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, level: int
) -> Launch:
    arguments = {
        "planes": planes,
        "bias": bias,
        "out": out,
        "size": out.numel(),
        "N": out.shape[-1],
        "LEVEL": level,
        "BLOCK": ROW_BLOCK,
    }
    grid = (ceil_div(out.numel(), ROW_BLOCK),)
    return Launch(kernel=add_planes, grid=grid, arguments=arguments)
