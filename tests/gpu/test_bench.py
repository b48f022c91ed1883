"""bench.gpu without a GPU: what it would do, when it stops, and what it makes of results."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from bench import gpu, gpu_models, gpu_tables
from bench.gpu_budget import PARTS, Budget
from bench.gpu_bundle import SOURCE
from bench.gpu_children import resumed, streamed
from isobit.runtime.engine.preflight import prepare
from isobit.runtime.settings.engine import check_device

ROOT = Path(__file__).parents[2]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_bundle_has_all_that_a_build_reads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["scikit-build"]["wheel"]["packages"].values())
    assert packages | {"pyproject.toml", "CMakeLists.txt", project["project"]["readme"]} <= set(
        SOURCE
    )
    assert all((ROOT / name).exists() for name in SOURCE)


def test_a_dry_run_lists_every_part_and_its_time() -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry-run"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    lines = run.stdout.splitlines()
    for wanted in (
        "products: int4 group 128 symmetric float16 scales, 8192 x 8192, 1 rows",
        "models: 14B, graphs, plain loop, batches of 1, 16, 64",
        "models: 32B, eager, batches of 1, 16, 64",
        "models: at most 312 s, and what parts before it left",
    ):
        assert wanted in lines
    assert len(lines) == sum(map(len, gpu.planned().values())) + len(PARTS)


def test_what_a_part_leaves_is_the_next_ones() -> None:
    clock = Clock()
    budget = Budget(10, clock)
    assert budget.seconds_left("products") == 210
    clock.now += 50
    assert budget.seconds_left("products") == 160 and budget.seconds_left("models") == 550
    assert abs(sum(part.share for part in PARTS) - 1) < 1e-9


CHILD = """
import json, os, sys, time
for number in range(int(sys.argv[1]), 5):
    if number == 1:
        sys.exit("CUDA error: an illegal memory access was encountered")
    if number == 3:
        os.kill(os.getpid(), 9)
    print(json.dumps({"number": number}), flush=True)
"""


def test_a_part_goes_on_behind_what_ended_its_child() -> None:
    rows, errors = [], {}
    begun = resumed(
        lambda at: ["-c", CHILD, str(at)],
        5,
        lambda: 60.0,
        lambda at, row: rows.append((at, row["number"])),
        lambda at, text: errors.update({at: text}),
    )
    assert begun == 5 and rows == [(0, 0), (2, 2), (4, 4)]
    assert errors == {
        1: "CUDA error: an illegal memory access was encountered",
        3: "ended with status -9",
    }


def test_rows_that_came_before_the_time_was_up_are_kept() -> None:
    rows = []
    script = "import time; print('{}', flush=True); time.sleep(60)"
    assert streamed(["-c", script], 3.0, rows.append) == "time was up"
    assert rows == [{}]


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


def test_models_are_set_beside_the_bandwidth_of_the_card() -> None:
    row = {"batch": 1, "decode_ms_per_step": 4.0, "tokens_per_s": 250.0,
           "prefill_tokens_per_s": 9000.0, "weights_bytes": 8e9}  # fmt: skip
    models = [{"run": "14B, graphs", "rows": [row], "error": "time was up"}]
    console = Console(width=120, record=True)
    console.print(gpu_tables.of_models(models, 4e12))
    text = console.export_text()
    assert "0.50" in text and "time was up" in text
