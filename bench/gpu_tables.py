"""What bench.gpu found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

PRODUCTS = {
    "rows": ("rows", "{:.0f}"),
    "us": ("us", "{:.1f}"),
    "GB/s": ("gb_s", "{:.0f}"),
    "of copy": ("bandwidth_share", "{:.2f}"),
    "GFLOP/s": ("gflop_s", "{:.0f}"),
    "one chain": ("one_chain_us", "{:.1f}"),
    "cuBLAS": ("cublas_bf16_us", "{:.1f}"),
    "tinygemm": ("tinygemm_us", "{:.1f}"),
}


def of_products(products: Sequence[Mapping[str, Any]]) -> Table:
    """Times in microseconds; `one chain` is ours without a tree over atoms."""
    made = Table("weight", "N x K", *PRODUCTS)
    for one in products:
        cells = [form.format(one[key]) if key in one else "" for key, form in PRODUCTS.values()]
        made.add_row(one["weight"], f"{one['n']} x {one['k']}", *cells)
    return made


def of_models(models: Sequence[Mapping[str, Any]], bandwidth: float) -> Table:
    """`of copy`: the least time in which the weights can be read over the time of a step;
    `bandwidth` in bytes a second."""
    made = Table("model", "batch", "ms a step", "tokens/s", "of copy", "prefill tokens/s")
    for found in models:
        for row in found["rows"]:
            least = 1e3 * row["weights_bytes"] / bandwidth
            made.add_row(
                found["run"],
                str(row["batch"]),
                f"{row['decode_ms_per_step']:.2f}",
                f"{row['tokens_per_s']:.0f}",
                f"{least / row['decode_ms_per_step']:.2f}",
                f"{row['prefill_tokens_per_s']:.0f}",
            )
        if found["error"]:
            made.add_row(found["run"], found["error"])
    return made
