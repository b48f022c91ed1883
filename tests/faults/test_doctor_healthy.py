"""The doctor finds nothing where nothing is wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ..command import Command, command
from ..random_folder import save_random_folder
from ..support import GOLDEN, INT4, isobit
from ..unit.configs import config
from .doctor_cases import diagnose

__all__ = ["command"]


@pytest.mark.parametrize(
    ("model", "degree", "layout"),
    [
        (INT4, 4, "ragged"),
        (GOLDEN / "gptq-act-order", 2, "pad"),
        (GOLDEN / "gptq-v1-asymmetric-nibbles", 4, "ragged"),
        (GOLDEN / "awq", 3, "pad"),
        (GOLDEN / "ct-w8a8-static", 2, "ragged"),
        (GOLDEN / "bnb-nf4-nested", 4, "pad"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_a_healthy_model_is_called_healthy(model, degree, layout):
    diagnosis = diagnose(model, degree, layout=layout)
    assert diagnosis.decisive is None, diagnosis.decisive
    assert {check.severity for check in diagnosis.checks} <= {"ok", "note", "warning"}


@pytest.mark.parametrize("degree", [2, 3])
def test_the_library_is_outside_the_contract_and_no_fault(degree, tmp_path):
    save_random_folder(tmp_path, config())
    diagnosis = diagnose(tmp_path, degree, all_reduce="library")
    assert diagnosis.decisive is None, diagnosis.decisive
    warnings = [f.what for c in diagnosis.checks for f in c.findings if f.severity == "warning"]
    assert warnings and all("outside the contract" in what for what in warnings)


def test_the_command_says_healthy(command: Command, tmp_path):
    path = tmp_path / "page.html"
    outcome = command("doctor", INT4, "-tp", 2, "--quick", "--html", path, "--json")
    report = outcome.json()
    assert (outcome.status, report["verdict"]) == (0, "healthy")
    names = ["environment", "checkpoint", "plan", "collectives", "kernels", "degrees"]
    names += ["numbers", "reference"]
    assert [check["name"] for check in report["checks"]] == names
    assert report["checks"][0]["measured"]["kernels"]["isa"]
    page = path.read_text()
    for title in ("healthy", "Layers and ranks", "Memory per rank"):
        assert title in page


def test_a_verdict_is_told_on_the_terminal_and_can_be_had_again(
    command: Command, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    save_random_folder(tmp_path / "model", config())
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    outcome = command("doctor", tmp_path / "model", "-tp", 2)
    assert outcome.status == 1
    assert "checkpoint-damaged" in outcome.stdout
    replay = outcome.stdout.rpartition("--replay ")[2].replace("\n", "").replace(" ", "")
    again = command("doctor", "--replay", replay, "--json")
    assert (again.status, again.json()["verdict"]) == (1, "checkpoint-damaged")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "E-USAGE"),
        ((INT4, "-tp", 99), "E-PLAN-DEGREE"),
        ((INT4, "--prompt-ids", "1,999999"), "E-PROMPT"),
        ((INT4, "--dtype", "int7"), "E-DTYPE"),
    ],
)
def test_bad_usage_is_no_verdict(arguments, code, command: Command):
    outcome = command("doctor", *arguments, "--json")
    assert (outcome.status, outcome.json()["error"]["code"]) == (2, code)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        ("raise ImportError('libtorch_cpu.so: undefined symbol')", "undefined symbol"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    ],
)
def test_the_report_comes_out_where_torch_is_broken(module, what, tmp_path):
    """Not even importing torch may end the doctor; nobody else in the house can run then."""
    (tmp_path / "torch.py").write_text(module)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = isobit("doctor", str(INT4), "--json", PYTHONPATH=os.pathsep.join(paths))
    assert done.returncode == 1, (done.stderr, sys.version)
    assert '"verdict": "environment"' in done.stdout
    assert what in done.stdout
