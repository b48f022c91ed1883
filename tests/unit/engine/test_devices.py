"""Which device a rank gets, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isobit.errors import IsobitError
from isobit.launch.cli.app import make_app
from isobit.runtime import checked_gpus
from isobit.runtime.checked_gpus import forget_passed, gpu_names, remember_passed
from isobit.runtime.devices import (
    device_names,
    on_this_machine,
    open_device,
    refuse_cuda,
    resolve_device,
)
from isobit.runtime.engine.preflight import prepare
from isobit.runtime.settings.engine import EngineSettings, at_degree
from isobit.runtime.transport.ticket import RankTicket
from isobit.shard.plan.plan import PlanSettings

from ...support import INT4, isobit


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Make torch see a number of cards, in a home without a record of a check."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda i: SimpleNamespace(name="NVIDIA GeForce RTX 3090", uuid=f"GPU-{i}"),
        )

    return see


def tickets(*devices: str) -> list[RankTicket]:
    return [
        RankTicket(endpoint="", rank=rank, degree=len(devices), secret="", device=device)
        for rank, device in enumerate(devices)
    ]


def error_of(function: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(IsobitError) as caught:
        function(*arguments, **named)
    assert caught.value.exit_status == 2
    return f"{caught.value.code} {caught.value.message}"


def said(caplog: pytest.LogCaptureFixture, ranks: int | None = None) -> tuple[str, list[str]]:
    """What "auto" comes to, and the warnings on the way."""
    caplog.clear()
    return resolve_device("auto", ranks), caplog.messages


def test_auto_takes_cards_once_they_have_been_checked(cards: Any, caplog: Any) -> None:
    cards(0)
    assert said(caplog) == ("cpu", [])
    cards(2)
    assert resolve_device("cuda:1,cuda:0") == "cuda:1,cuda:0"
    assert [resolve_device(asked) for asked in ("cuda", "cpu")] == ["cuda", "cpu"]
    device, (line,) = said(caplog)
    assert device == "cpu" and line.endswith("isobit gpu check has not passed on this machine")
    remember_passed(gpu_names(), "today")
    assert said(caplog, 2) == ("cuda", [])
    device, (line,) = said(caplog, 3)
    assert device == "cpu" and "3 ranks, 2 GPUs" in line
    forget_passed()
    assert said(caplog)[0] == "cpu"


@pytest.mark.parametrize("what", ["driver", "isobit", "kernels", "torch", "triton"])
def test_a_check_holds_for_the_software_it_was_made_with(
    what: str, cards: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards(1)
    remember_passed(gpu_names(), "today")
    now = {**checked_gpus.software(), what: "570.1"}
    monkeypatch.setattr(checked_gpus, "software", lambda: now)
    device, (line,) = said(caplog)
    assert device == "cpu" and f"passed before {what} " in line and line.endswith("-> 570.1")


def test_a_check_holds_for_the_cards_it_was_made_on(cards: Any, caplog: Any) -> None:
    cards(1)
    remember_passed(gpu_names(), "today")
    cards(2)
    device, (line,) = said(caplog)
    assert device == "cpu" and line.endswith("not passed on NVIDIA GeForce RTX 3090 GPU-1")


@pytest.mark.parametrize("record", ["", "[]", '{"gpus": 3}', '{"gpus": [], "software": []}'])
def test_a_record_that_is_none_counts_for_nothing(record: str, cards: Any, caplog: Any) -> None:
    cards(1)
    checked_gpus.record_path().parent.mkdir(parents=True)
    checked_gpus.record_path().write_text(record)
    assert said(caplog)[0] == "cpu"


def test_what_has_no_cuda_path_says_so(cards: Any, caplog: Any) -> None:
    cards(1)
    refuse_cuda("cpu", "isobit quantize")
    assert not caplog.messages
    refuse_cuda("auto", "isobit quantize")
    assert caplog.messages == ["--device auto: CPU, not the GPUs: isobit quantize has no CUDA path"]
    wrong = error_of(refuse_cuda, "cuda:0", "isobit quantize")
    assert wrong.startswith("E-DEVICE-SETTING --device cuda:0: isobit quantize runs on CPUs alone")
    assert "E-DEVICE " in error_of(refuse_cuda, "gpu", "isobit quantize")


RANKS = {
    "generate": ["--prompt-ids", "1"],
    "verify": [],
    "evaluate": [],
    "bench throughput": [],
    "trace": ["OUT", "--prompt-ids", "1"],
}
CPUS = {
    "doctor": ["MODEL"],
    "quantize": ["MODEL", "OUT"],
    "bench kernels": [],
    "bench collectives": [],
    "trace": ["MODEL", "OUT", "--prompt-ids", "1", "--transformers"],
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
@pytest.mark.parametrize("command", RANKS)
def test_every_command_that_starts_ranks_takes_a_device(command: str, tmp_path: Path) -> None:
    more = [str(tmp_path / "out") if each == "OUT" else each for each in RANKS[command]]
    words = [*command.split(), str(INT4), *more, "--launcher", "local"]
    for option, code in (("--device=cuda", "E-DEVICE-NONE"), ("--enforce-eager", "E-DEVICE-SET")):
        assert error_of_command(*words, option).startswith(code)


@pytest.mark.parametrize("command", CPUS)
def test_commands_of_cpus_refuse_cuda(command: str, tmp_path: Path) -> None:
    names = {"MODEL": str(INT4), "OUT": str(tmp_path / "out")}
    more = [names.get(each, each) for each in CPUS[command]]
    wrong = error_of_command(*command.split(), *more, "--device", "cuda")
    assert wrong.startswith("E-DEVICE-SETTING --device cuda: ")


def error_of_command(*words: str) -> str:
    """Code and message of a command that fails in this process."""
    with pytest.raises(IsobitError) as caught:
        make_app(words[0])(list(words), standalone_mode=False)
    return f"{caught.value.code} {caught.value.message}"


def test_without_a_card_cuda_is_an_error(cards: Any) -> None:
    cards(0)
    for asked in ("cuda", "cuda:0"):
        assert error_of(resolve_device, asked).startswith(f"E-DEVICE-NONE --device {asked}: ")
    assert "given cuda:0" in error_of(open_device, "cuda:0", most_rows=1, eager=False)


@pytest.mark.parametrize(
    "asked", ["gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:0,cpu", "", "cuda,cuda"]
)
def test_names_of_no_device(asked: str) -> None:
    assert "expected auto, cpu, cuda, or as cuda:0,cuda:1" in error_of(resolve_device, asked)


def test_a_device_for_each_rank() -> None:
    assert device_names("cuda", 2) == ["cuda", "cuda"]
    assert device_names("cuda:1,cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert "2 devices, 3 ranks" in error_of(device_names, "cuda:0,cuda:1", 3)
    settings = EngineSettings(device="cuda:0,cuda:0,cuda:1")
    assert at_degree(settings, PlanSettings(degree=2)).device == "cuda:0,cuda:0"


def test_rank_r_gets_card_r_of_this_machine(cards: Any) -> None:
    cards(2)
    assert [t.device for t in on_this_machine(tickets("cuda", "cuda"))] == ["cuda:0", "cuda:1"]
    assert [t.device for t in on_this_machine(tickets("cpu"))] == ["cpu"]
    assert [t.device for t in on_this_machine(tickets("cuda:1", "cuda:1"))] == ["cuda:1", "cuda:1"]
    wrong = error_of(on_this_machine, tickets("cuda", "cuda", "cuda", "cuda:7"))
    assert (
        "E-DEVICE-COUNT 2 CUDA devices are visible here, none for rank 2: cuda:2, rank 3" in wrong
    )


def test_settings_that_a_device_cannot_take_are_refused_together() -> None:
    assert "E-DEVICE-SETTING --enforce-eager" in error_of(
        prepare, INT4, EngineSettings(enforce_eager=True)
    )
    settings = EngineSettings(
        device="cuda", dtype="float32", check="full", verify_load=True, examine=True
    )
    wrong = error_of(prepare, INT4, settings)
    assert all(each in wrong for each in ("float32", "--check full", "--verify-load", "doctor"))
    prepare(INT4, EngineSettings(device="cuda", enforce_eager=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here")
def test_the_commands_say_so_in_one_line() -> None:
    for option, code in (("--device=cuda", "E-DEVICE-NONE"), ("--enforce-eager", "E-DEVICE-SET")):
        ended = isobit("generate", str(INT4), "--prompt-ids", "1", "--launcher", "local", option)
        assert ended.returncode == 2 and code in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_cpu_rank_imports_no_triton() -> None:
    script = (
        "import sys; from isobit.runtime import worker; from isobit.launch.cli import generate; "
        "assert 'isobit.kernels.gpu.program' not in sys.modules; "
        "assert not any(name.startswith('isobit.kernels.gpu.jit') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


def test_a_card_that_cuda_does_not_give_has_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    said = error_of(open_device, "cuda:1", most_rows=1, eager=False)
    assert said == (
        "E-DEVICE-OPEN cuda:1 cannot be used: CUDA error: all CUDA-capable devices are busy or "
        "unavailable"
    )
