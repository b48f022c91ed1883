"""Which device a rank gets, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from isobit.kernels.errors import IsobitError
from isobit.runtime.config import EngineSettings, at_degree
from isobit.runtime.devices import device_names, on_this_machine, open_device, resolve_device
from isobit.runtime.prepare import prepare
from isobit.runtime.ticket import RankTicket
from isobit.shard.plan import PlanSettings

from ..support import INT4, isobit


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch see a number of cards."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

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


def test_auto_takes_cards_where_there_are_some(cards: Any) -> None:
    cards(0)
    assert resolve_device("auto") == "cpu"
    cards(2)
    assert [resolve_device(asked) for asked in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    assert resolve_device("cuda:1,cuda:0") == "cuda:1,cuda:0"


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
