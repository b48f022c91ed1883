"""What one product costs on this card, and the same in cuBLAS and in torch's int4 kernel.

`python -m bench.gpu_speed FIRST` measures the products of the bench from one on, a line each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

import torch

from isobit.kernels.gpu.catalog import ATOMS, FORMS, WeightForm
from isobit.kernels.gpu.weight import CHUNK
from isobit.launch.gpu_check.speed import products as ours_of
from isobit.launch.gpu_check.speed import random_weight
from isobit.launch.gpu_check.timing import copy_bandwidth, graph_seconds

CACHE_BYTES = 256 << 20
"""Copies of a weight together exceed the L2 cache: few rows find every weight in memory."""
FEW_ROWS = 64
TINYGEMM_ROWS = 64
MEASURED = (FORMS[0], FORMS[1], FORMS[6], FORMS[8], FORMS[9], FORMS[10])
SHAPES = ((8192, 8192), (5120, 5120), (13824, 5120), (5120, 13824))
"""N x K: a square one, and the products of a model of 14B parameters."""
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
Product = tuple[WeightForm, int, int, int]


def products() -> list[Product]:
    """The shape that is judged first, then the others."""
    return [(form, n, k, rows) for n, k in SHAPES for form in MEASURED for rows in ROWS]


def describe(product: Product) -> str:
    form, n, k, rows = product
    return f"{form.name}, {n} x {k}, {rows} rows"


def copy_gb_s() -> float:
    """What a copy reads and writes together, found in a process of its own."""
    from .gpu_children import streamed

    found: list[float] = []
    error = streamed(["-m", "bench.gpu_speed", "copy"], 60, lambda line: found.append(line["gb_s"]))
    if error is not None:
        sys.exit(f"a copy on the card failed: {error}")
    return found[0]


def measure(form: WeightForm, n: int, k: int, rows: int, bandwidth: float) -> dict:
    """Times of one product, ours over eight atoms and over one, and of the rivals."""
    x = torch.randn(rows, k, device="cuda").to(
        torch.float16 if form.kind == "float16" else torch.bfloat16
    )
    weight = random_weight(form, n, k, ATOMS, "cuda")
    copies = 1 + CACHE_BYTES // weight.nbytes if rows <= FEW_ROWS else 1
    ours = graph_seconds(ours_of(x, form, n, k, ATOMS, copies))
    found = {
        "weight": form.name,
        "n": n,
        "k": k,
        "rows": rows,
        "us": ours * 1e6,
        "gb_s": weight.nbytes / ours / 1e9,
        "bandwidth_share": weight.nbytes / ours / bandwidth,
        "gflop_s": 2 * rows * n * k / ours / 1e9,
        "one_chain_us": graph_seconds(ours_of(x, form, n, k, 1, copies)) * 1e6,
    }
    half = x.bfloat16()
    dense = [
        torch.randn(n, k, dtype=torch.bfloat16, device="cuda")
        for _ in range(1 + CACHE_BYTES // (2 * n * k) if rows <= FEW_ROWS else 1)
    ]
    linear = torch.nn.functional.linear
    found["cublas_bf16_us"] = graph_seconds([lambda w=w: linear(half, w) for w in dense]) * 1e6
    if form.kind == "int4" and rows <= TINYGEMM_ROWS:
        found["tinygemm_us"] = graph_seconds(_tinygemm(half, n, k, copies)) * 1e6
    return found


def _tinygemm(x: torch.Tensor, n: int, k: int, copies: int) -> list[Callable[[], object]]:
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    tables = torch.randn(k // CHUNK, n, 2, dtype=torch.bfloat16, device="cuda")
    product = torch.ops.aten._weight_int4pack_mm
    weights = [packed] + [packed.clone() for _ in range(copies - 1)]
    return [lambda w=w: product(x, w, CHUNK, tables) for w in weights]


def main(arguments: Sequence[str]) -> None:
    if arguments[0] == "copy":
        _say({"gb_s": copy_bandwidth(torch.device("cuda")) / 1e9})
        return
    bandwidth = copy_bandwidth(torch.device("cuda"))
    for product in products()[int(arguments[0]) :]:
        _say(measure(*product, bandwidth))


def _say(found: dict) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
