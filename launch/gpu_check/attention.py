"""Attention: right against float64; a row's bits alone, among others, split or not."""

from __future__ import annotations

import torch

from ...kernels import reference
from ...kernels.gpu.attention import Heads, attention_work, plan_chunks
from ...kernels.gpu.launch import run_all
from ...kernels.step.kv_cache import PAGE, KVCache
from .place import Place, Report, require

COLUMNS = (32, 16)
BOUND = 2.0**-7
"""Outputs are averages of numbers around 1, rounded to bfloat16 once."""


def attention(at: Place, report: Report) -> None:
    """One sequence of several pages and stretches, in pages out of order."""
    sizes = at.sizes
    torch.manual_seed(7)
    heads, kv, head = sizes.heads
    pages = -(-sizes.context // PAGE)
    cache = KVCache.allocate(pages, kv, head, torch.bfloat16)
    cache.keys.normal_(), cache.values.normal_()
    tables = torch.randperm(pages).to(torch.int32)[None]
    positions = torch.arange(sizes.context - sizes.queries, sizes.context, dtype=torch.int32)
    sequence = torch.zeros(sizes.queries, dtype=torch.int32)
    q = torch.randn(sizes.queries, heads, head).bfloat16()
    to_kv = [h * kv // heads for h in range(heads)]
    exact = reference.attention(
        q, cache, block_tables=tables, row_sequence=sequence, positions=positions,
        head_to_kv=torch.tensor(to_kv), scale=head**-0.5,
    )  # fmt: skip
    there = KVCache(cache.keys.to(at.device), cache.values.to(at.device))
    shared = Heads.of(to_kv, kv, at.device, head)

    def run(rows: slice, columns: int, split: bool) -> torch.Tensor:
        chunks = plan_chunks(sequence[rows], positions[rows], shared, at.device, columns=columns)
        out = torch.empty(len(q[rows]), heads * head, dtype=q.dtype, device=at.device)
        run_all(
            attention_work(
                q[rows].to(at.device).flatten(1), there, out, block_tables=tables.to(at.device),
                row_sequence=sequence[rows].to(at.device), positions=positions[rows].to(at.device),
                heads=shared, chunks=chunks, scale=head**-0.5, split=split,
            ).launches
        )  # fmt: skip
        return out.cpu()

    wanted = run(slice(None), COLUMNS[0], False)
    error = float((wanted.double() - exact).abs().nan_to_num(torch.inf).max())
    require(error <= BOUND, f"off by {error:.3g}, expected at most {BOUND:.3g}")
    last = sizes.queries - 1
    for rows in (slice(0, 1), slice(last, last + 1), slice(None)):
        for columns in COLUMNS[-1:] if at.rehearsal else COLUMNS:
            for split in (False, True):
                same = torch.equal(run(rows, columns, split), wanted[rows])
                which = "all rows" if rows == slice(None) else f"row {rows.start}"
                how = "split over programs" if split else "in one program"
                require(same, f"{which}, {columns} columns, {how}: other bits")
    report.row(context=sizes.context, error=error)
