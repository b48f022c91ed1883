"""What one product costs on this card, and the same in cuBLAS and in torch's int4 kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from isobit.kernels.gpu.catalog import ATOMS, WeightForm, meta_weight
from isobit.kernels.gpu.launch import run_all
from isobit.kernels.gpu.linear import Node, product_work
from isobit.kernels.gpu.weight import CHUNK, GpuWeight

CACHE_BYTES = 256 << 20
"""Copies of a weight together exceed the L2 cache: few rows find every weight in memory."""
FEW_ROWS = 64
ROUNDS = 5
TINYGEMM_ROWS = 64


def random_weight(form: WeightForm, n: int, k: int, segments: int) -> GpuWeight:
    """Random codes and scales on the GPU."""
    meta = meta_weight(form, n, k, segments)
    bounds = [segment * meta.chunks // segments for segment in range(segments + 1)]
    runs = list(range(segments + 1))
    by_run = meta.run_chunks is not None
    fields: dict[str, Any] = {
        "offsets": _integers(runs if by_run else bounds),
        "run_chunks": _integers(bounds) if by_run else None,
    }
    if meta.data.dtype.is_floating_point:
        fields["data"] = torch.randn(meta.data.shape, dtype=meta.data.dtype, device="cuda")
    else:
        most = torch.iinfo(meta.data.dtype)
        fields["data"] = torch.randint(
            most.min, most.max, meta.data.shape, dtype=meta.data.dtype, device="cuda"
        )
    if meta.column_scales is not None:
        fields["column_scales"] = torch.rand(meta.column_scales.shape, device="cuda")
    if meta.tables is not None:
        scales = torch.rand(meta.tables.shape, device="cuda").half().view(torch.int16).int()
        zeros = torch.randint(0, 16, meta.tables.shape, dtype=torch.int32, device="cuda")
        fields["tables"] = (scales & 0xFFFF) | (zeros << 16)
    return dataclasses.replace(meta, **fields)


def _integers(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Of one call: the fastest of a few replays of all of them, recorded as one CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:  # compiles what is not compiled yet
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return min(replay_seconds(graph) for _ in range(ROUNDS)) / len(calls)


def replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of the second of two replays."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_bandwidth() -> float:
    """Bytes a second that a copy reads and writes together."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds([lambda: target.copy_(source)] * 3)


def measure(form: WeightForm, n: int, k: int, rows: int, bandwidth: float) -> dict:
    """Times of one product, ours over eight atoms and over one, and of the rivals."""
    x = torch.randn(rows, k, device="cuda").to(
        torch.float16 if form.kind == "float16" else torch.bfloat16
    )
    weight = random_weight(form, n, k, ATOMS)
    copies = 1 + CACHE_BYTES // weight.nbytes if rows <= FEW_ROWS else 1
    ours = seconds(_products(x, form, n, k, ATOMS, copies))
    found = {
        "weight": form.name,
        "n": n,
        "k": k,
        "rows": rows,
        "us": ours * 1e6,
        "gb_s": weight.nbytes / ours / 1e9,
        "bandwidth_share": weight.nbytes / ours / bandwidth,
        "gflop_s": 2 * rows * n * k / ours / 1e9,
        "one_chain_us": seconds(_products(x, form, n, k, 1, copies)) * 1e6,
    }
    half = x.bfloat16()
    dense = [
        torch.randn(n, k, dtype=torch.bfloat16, device="cuda")
        for _ in range(1 + CACHE_BYTES // (2 * n * k) if rows <= FEW_ROWS else 1)
    ]
    linear = torch.nn.functional.linear
    found["cublas_bf16_us"] = seconds([lambda w=w: linear(half, w) for w in dense]) * 1e6
    if form.kind == "int4" and rows <= TINYGEMM_ROWS:
        found["tinygemm_us"] = seconds(_tinygemm(half, n, k, copies)) * 1e6
    return found


def _products(
    x: torch.Tensor, form: WeightForm, n: int, k: int, segments: int, copies: int
) -> list[Callable[[], None]]:
    weights = [random_weight(form, n, k, segments) for _ in range(copies)]
    out = torch.empty(1, x.shape[0], n, device="cuda")
    root = [Node(0, (segments - 1).bit_length())]
    works = [product_work(x, weight, out, root) for weight in weights]
    return [lambda work=work: run_all(work.launches) for work in works]


def _tinygemm(x: torch.Tensor, n: int, k: int, copies: int) -> list[Callable[[], object]]:
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    tables = torch.randn(k // CHUNK, n, 2, dtype=torch.bfloat16, device="cuda")
    product = torch.ops.aten._weight_int4pack_mm
    weights = [packed] + [packed.clone() for _ in range(copies - 1)]
    return [lambda w=w: product(x, w, CHUNK, tables) for w in weights]
