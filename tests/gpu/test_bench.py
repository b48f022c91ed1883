"""bench.gpu without a GPU: what it would do, when it stops, and what it makes of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from isobit.runtime.config import check_device
from isobit.runtime.prepare import prepare
from rich.console import Console

from bench import gpu, gpu_models, gpu_ranks, gpu_tables
from bench.gpu_budget import PARTS, Budget

ROOT = Path(__file__).parents[2]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_dry_run_lists_every_part_and_its_time() -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry-run"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    lines = run.stdout.splitlines()
    for wanted in (
        "checks: bits of int4",
        "two ranks on one GPU: host memory, 512 x 5120",
        "products: int4 group 128 symmetric float16 scales, 8192 x 8192, 1 rows",
        "models: 14B, graphs, plain loop, batches of 1, 16, 64",
        "models: 32B, eager, batches of 1, 16, 64",
        "models: at most 240 s, and what parts before it left",
    ):
        assert wanted in lines
    assert len(lines) == sum(map(len, gpu.planned(False).values())) + len(PARTS)


def test_a_part_stops_when_its_time_is_over_and_says_what_it_left() -> None:
    clock = Clock()
    budget = Budget(10, clock)
    begun = []
    for item in budget.items("checks", range(5), str):
        begun.append(item)
        clock.now += 50
    assert begun == [0, 1, 2]  # 120 seconds
    assert budget.left_out == ["checks: 3", "checks: 4"]
    # What the part took too long is the next one's loss, what it leaves its gain.
    assert budget.seconds_left("two ranks on one GPU") == 30
    assert abs(sum(part.share for part in PARTS) - 1) < 1e-9
    assert budget.seconds_left("models") == 450


@pytest.mark.parametrize("run", gpu_models.RUNS, ids=lambda run: run.name)
def test_every_model_can_be_run_as_it_is_described(run, tmp_path) -> None:
    gpu_models.write_config(run.shape, tmp_path)
    settings = gpu_models.settings(run, gpu_models.BATCHES)
    spec, plan = prepare(tmp_path, settings)
    assert plan.atoms == run.atoms
    check_device(settings, spec.torch_dtype)
    assert spec.quantization is not None
    scheme = spec.quantization.scheme("model.layers.0.mlp.up_proj")
    assert scheme is not None and (scheme.bits, scheme.group_size) == (4, 128)


def test_the_cost_of_the_contract_is_a_step_over_that_of_the_plain_loop() -> None:
    def found(name: str, *steps: tuple[int, float]) -> dict:
        rows = [{"batch": batch, "decode_ms_per_step": ms} for batch, ms in steps]
        return {"run": name, "rows": rows}

    models = [
        found("14B, graphs", (1, 11.0), (16, 12.0), (64, 20.0)),
        found("14B, graphs, plain loop", (1, 10.0), (16, 12.0)),
        found("7B, graphs", (1, 1.0)),
    ]
    cost = gpu_models.contract_cost(models)
    assert cost == {1: pytest.approx(0.1), 16: 0.0}
    assert gpu_models.contract_cost(models[2:]) == {}


def test_what_two_ranks_found_is_read_even_when_they_did_not_end() -> None:
    rows = [
        {"transport": transport, "rows": rows, "bytes": 4, "same_bits": True, "us": 9.0}
        for transport in gpu_ranks.TRANSPORTS
        for rows in gpu_ranks.ROWS
    ]
    lines = [json.dumps(row) for row in rows]
    assert gpu_ranks.read("\n".join(lines)) == {"error": None, "rows": rows}
    assert gpu_ranks.read("\n".join(lines[:2]))["error"] == "2 of 6 were measured"
    assert gpu_ranks.read(lines[0] + '\n{"error": "E-COLL-CUDA no"}')["error"] == "E-COLL-CUDA no"
    wrong = json.dumps({**rows[5], "same_bits": False})
    found = gpu_ranks.read("\n".join([*lines[:5], wrong]))
    assert found["error"] == "not the bits of the tree: host memory, 512 rows"
    table = Console(width=120, record=True)
    table.print(gpu_tables.of_ranks(found))
    assert "FAILED: not the bits of the tree" in table.export_text()


def test_models_are_set_beside_the_bandwidth_of_the_card() -> None:
    row = {"batch": 1, "decode_ms_per_step": 4.0, "tokens_per_s": 250.0,
           "prefill_tokens_per_s": 9000.0, "weights_bytes": 8e9}  # fmt: skip
    models = [{"run": "14B, graphs", "rows": [row], "error": "time was up"}]
    console = Console(width=120, record=True)
    console.print(gpu_tables.of_models(models, 4e12))
    text = console.export_text()
    assert "0.50" in text and "time was up" in text
