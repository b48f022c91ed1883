"""`isobit gpu check`, rehearsed: every seeded fault is told by its step, and hides no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from isobit.errors import IsobitError
from isobit.launch.cli.app import make_app
from isobit.launch.gpu_check.check import CheckSettings, check_gpus
from isobit.launch.gpu_check.child import FAULT
from isobit.launch.gpu_check.ladder import STEPS, rungs
from isobit.launch.gpu_check.page import gpu_page
from isobit.launch.gpu_check.verdict import verdict
from isobit.runtime.checked_gpus import record_path

from ..faults.gpu_faults import FAULTS
from ..support import INT4

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPUs are simulated")
WHAT = {
    "build": "libcuda.so.1",
    "product": "times what rounding explains",
    "row-bits": "against the row alone",
    "tp-bits": "against one rank",
    "attention": "split over programs: other bits",
    "other-ops": "no end within 4 s",
    "model": "logits are off by",
    "graph": "the graph gives other bits than eager",
    "host-memory": "not the bits of the tree",
    "peer-memory": "did not come within",
    "sum-graph": "was killed by signal 11 SIGSEGV",
    "nccl": "not the bits of the tree",
    "bandwidth": "GPU is lost",
    "all-weights": "was killed by signal 9 SIGKILL",
}
HOW = {
    "other-ops": "hung",
    "all-weights": "died",
    "bandwidth": "exception",
    "graph": "wrong result",
}


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return tmp_path


def run(only: tuple[str, ...], out: Path) -> dict[str, Any]:
    settings = CheckSettings(rehearsal=True, only=only, limits={"other-ops": 4.0})
    with out.open("a") as journal:
        return check_gpus(settings, journal, lambda _: None, lambda _: None, lambda _: None)


@pytest.mark.timeout(400)
def test_every_fault_is_told_by_its_step_and_hides_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spared = ("graph-latency",)
    monkeypatch.setenv(FAULT, "tests.faults.gpu_faults:seed")
    report = run((*FAULTS, *spared), home / "out.jsonl")
    found = {(result["step"], result["place"]): result for result in report["results"]}
    for (step, place), result in found.items():
        if step in spared:
            assert result["status"] == "passed", result
        elif (step, place) == ("nccl", "cuda:0 + cuda:0"):
            assert result["status"] == "not run" and "NCCL refuses" in result["what"]
        else:
            assert result["status"] == "failed", result
            assert WHAT[step] in result["what"], result
            assert result["how"] == HOW.get(step, result["how"])
    lines = [json.loads(line) for line in (home / "out.jsonl").read_text().splitlines()]
    assert lines[0]["facts"]["gpus"] and lines[-1]["verdict"] == report["verdict"]
    assert lines[1:-1] == report["results"]
    assert not report["verdict"]["passed"] and not record_path().exists()
    advice = {each["place"]: each for each in report["verdict"]["advice"]}
    assert advice["cuda:0"]["use"] == "--device cpu" and "row-bits" in advice["cuda:0"]["why"]
    assert advice["cuda:0 + cuda:1"]["use"].startswith("-tp 1")
    page = gpu_page(report)
    assert all(text in page for text in ("A rehearsal", "GPU is lost", "SIGKILL", "NCCL refuses"))


def test_a_step_that_passes_says_what_it_saw(home: Path) -> None:
    report = run(("build", "nccl"), home / "out.jsonl")
    assert [result["status"] for result in report["results"]] == ["passed", "not run", "passed"]
    sums = report["verdict"]["sums"]
    assert {(row["place"], row["over"]) for row in sums} == {
        ("cuda:0 + cuda:1", "gather"), ("cuda:0 + cuda:1", "library"),
    }  # fmt: skip
    assert [row["rows"] for row in sums if row["over"] == "gather"] == [1, 16, 512]
    assert report["verdict"]["passed"] and not record_path().exists()
    assert report["machine"]["software"]["torch"] == torch.__version__


def result_of(step: str, gpus: list[int], status: str, **more: Any) -> dict[str, Any]:
    place = " + ".join(f"cuda:{gpu}" for gpu in gpus)
    return {"step": step, "gpus": gpus, "place": place, "status": status, "what": "why", "rows": [],
            "how": "", "seconds": 0.0, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("peer", "host", "use"),
    [
        ("passed", "passed", "--all-reduce custom, over peer memory"),
        ("failed", "passed", "--all-reduce custom, over host memory with NCCL_P2P_DISABLE=1"),
        ("not run", "passed", "--all-reduce custom, over host memory"),
        ("failed", "failed", "--all-reduce gather, over gather with NCCL_P2P_DISABLE=1 "
         "--disable-custom-all-reduce"),
    ],
)  # fmt: skip
def test_the_first_way_that_works_is_advised(peer: str, host: str, use: str) -> None:
    pair = [0, 1]
    results = [
        result_of("host-memory", pair, host),
        result_of("peer-memory", pair, peer),
        result_of("nccl", pair, "passed"),
    ]
    (advice,) = verdict(results)["advice"]
    assert advice["use"] == use


def test_steps_that_are_broken_keep_a_gpu_from_being_used() -> None:
    def use(step: str, status: str) -> str:
        (advice,) = verdict([result_of(step, [0], status)])["advice"]
        return advice["use"]

    assert use("row-bits", "failed") == use("model", "failed") == "--device cpu"
    assert use("graph", "failed") == "--enforce-eager"
    assert use("bandwidth", "failed") == use("graph", "passed") == "--device cuda"


def test_one_gpu_has_no_pairs_and_says_so() -> None:
    left_out = [rung for rung in rungs(1) if rung.not_run]
    assert {rung.step.name for rung in left_out} == {s.name for s in STEPS if s.over == "each pair"}
    assert all(rung.not_run == "this machine has one GPU" for rung in left_out)
    pairs = [rung.gpus for rung in rungs(3) if rung.step.name == "host-memory"]
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 2)]
    assert not any(rung.not_run for rung in rungs(3))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["gpu", "check"], "E-DEVICE-NONE"),
        (["gpu", "check", "--only", "build,no"], "E-USAGE"),
        (["gpu", "check", "--minutes", "0"], "E-USAGE"),
        (["gpu", "check", "--html", "/nowhere/page.html"], "E-OUT-PARENT"),
        (["gpu", "check", "--out", "/nowhere/out.jsonl"], "E-OUT-PARENT"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(words: list[str], code: str) -> None:
    with pytest.raises(IsobitError) as caught:
        make_app(words[0])(words, standalone_mode=False)
    assert caught.value.code == code and caught.value.exit_status == 2


def test_plain_processes_need_neither_ray_nor_zmq(tmp_path: Path) -> None:
    """As on a machine that has torch, triton and transformers alone."""
    for name in ("ray", "zmq"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = ["generate", str(INT4), "--prompt-ids", "1", "--max-tokens", "2", "--launcher", "local"]
    for command in ([*words, "-tp", "2", "--json"], ["gpu", "check", "--help"]):
        ended = subprocess.run(
            [sys.executable, "-m", "isobit.launch.cli", *command],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
