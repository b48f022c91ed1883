"""How much of the memory's bandwidth a product of one row takes, and what a graph costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...kernels.gpu.catalog import ATOMS, FORMS, WeightForm, meta_weight
from ...kernels.gpu.launch import run_all
from ...kernels.gpu.linear import Node, product_work
from ...kernels.gpu.weight import GpuWeight
from .place import Place, Report
from .timing import copy_bandwidth

INT4 = FORMS[0]
LAUNCHES = 100


def bandwidth(at: Place, report: Report) -> None:
    """int4 weights, one row; several copies of a weight, so that no cache holds the next one."""
    copied = None if at.rehearsal else copy_bandwidth(at.device)
    if copied is not None:
        report.row(copy_gb_s=copied / 1e9)
    for n, k in at.sizes.shapes:
        x = torch.randn(1, k, device=at.device).bfloat16()
        nbytes = meta_weight(INT4, n, k, ATOMS).nbytes
        copies = 1 + at.sizes.copies_bytes // nbytes
        seconds = at.seconds(products(x, INT4, n, k, ATOMS, copies))
        row: dict[str, Any] = {"n": n, "k": k, "us": seconds * 1e6, "gb_s": nbytes / seconds / 1e9}
        if copied is not None:
            row["share_of_copy"] = nbytes / seconds / copied
        report.row(**row)


def graph_latency(at: Place, report: Report) -> None:
    """From the host: a graph of one tiny kernel, started and waited for."""
    import time

    word = torch.zeros(1, device=at.device)
    word.add_(1)

    def one_kernel() -> None:
        word.add_(1)

    replay = at.card().capture(one_kernel)
    times = []
    for _ in range(LAUNCHES):
        began = time.perf_counter()
        replay()
        if not at.rehearsal:
            torch.cuda.synchronize(at.device)
        times.append(time.perf_counter() - began)
    times.sort()
    report.row(median_us=times[LAUNCHES // 2] * 1e6, least_us=times[0] * 1e6)


def random_weight(
    form: WeightForm, n: int, k: int, segments: int, device: torch.device | str
) -> GpuWeight:
    """Random codes and scales on the GPU."""
    meta = meta_weight(form, n, k, segments)
    bounds = [segment * meta.chunks // segments for segment in range(segments + 1)]
    runs = list(range(segments + 1))
    by_run = meta.run_chunks is not None

    def integers(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    fields: dict[str, Any] = {
        "offsets": integers(runs if by_run else bounds),
        "run_chunks": integers(bounds) if by_run else None,
    }
    if meta.data.dtype.is_floating_point:
        fields["data"] = torch.randn(meta.data.shape, dtype=meta.data.dtype, device=device)
    else:
        most = torch.iinfo(meta.data.dtype)
        fields["data"] = torch.randint(
            most.min, most.max, meta.data.shape, dtype=meta.data.dtype, device=device
        )
    if meta.column_scales is not None:
        fields["column_scales"] = torch.rand(meta.column_scales.shape, device=device)
    if meta.tables is not None:
        scales = torch.rand(meta.tables.shape, device=device).half().view(torch.int16).int()
        zeros = torch.randint(0, 16, meta.tables.shape, dtype=torch.int32, device=device)
        fields["tables"] = (scales & 0xFFFF) | (zeros << 16)
    return dataclasses.replace(meta, **fields)


def products(
    x: torch.Tensor, form: WeightForm, n: int, k: int, segments: int, copies: int
) -> list[Callable[[], None]]:
    """One product `[M, K] x [N, K]` for each of several copies of a weight."""
    weights = [random_weight(form, n, k, segments, x.device) for _ in range(copies)]
    out = torch.empty(1, x.shape[0], n, device=x.device)
    root = [Node(0, (segments - 1).bit_length())]
    works = [product_work(x, weight, out, root) for weight in weights]
    return [lambda work=work: run_all(work.launches) for work in works]
