"""Every seeded fault is caught, and named by its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from isobit.errors import RankFault
from isobit.runtime.engine.engine import Engine
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.shard.plan.plan import PlanSettings

from ..command import Command, command
from ..random_folder import save_random_folder
from ..support import INT4, ROOT
from ..unit.configs import config
from .seeded import LAYER, NAN_STEP, NORM_LAYER

__all__ = ["command"]

IDS = ("--prompt-ids", "5,6,7,8,9,10,11")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
SHORT = ("--max-tokens", "2", "--launcher", "local", "--json")


@pytest.fixture(autouse=True)
def replays(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def seed_fault(monkeypatch):
    def put(name: str) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv("ISOBIT_FAULT", f"tests.faults.seeded:{name}")

    return put


def first_difference(command: Command, model: object, degrees: str) -> dict[str, Any]:
    outcome = command("verify", model, "--degrees", degrees, *IDS, *SHORT)
    report = outcome.json()
    assert outcome.status == 1
    assert report["identical"] is False
    return report["first_difference"]


def test_another_order_of_additions_is_named(seed_fault, command):
    """The parts are equal at both degrees; the sum is the first that is not."""
    seed_fault("sum_in_another_order")
    assert first_difference(command, INT4, "1,2") == {
        "site": "layers.0.self_attn.o_proj.out",
        "part": "whole",
        "step": 0,
        "degrees": [1, 2],
        "rank": 0,
    }


def test_one_flipped_bit_of_a_weight_is_named_by_layer_and_atom(seed_fault, command):
    """All ranks agree on the wrong sum: only another degree can tell."""
    seed_fault("flip_a_weight_bit")
    assert first_difference(command, INT4, "1,2") == {
        "site": f"layers.{LAYER}.mlp.down_proj.partial",
        "part": "atom 5",
        "step": 0,
        "degrees": [1, 2],
        "rank": 1,
    }


@pytest.mark.parametrize("fault", ["bias_on_all_ranks", "bias_on_all_ranks_but_one"])
def test_a_bias_within_the_sum_is_named_even_where_the_sum_is_right(
    fault, seed_fault, command, tmp_path
):
    """All but one at degree 2 add it once, as it should be, but not after the root of the tree."""
    llama = config(architectures=["LlamaForCausalLM"], attention_bias=True)
    save_random_folder(tmp_path / "llama", llama)
    seed_fault(fault)
    found = first_difference(command, tmp_path / "llama", "1,2")
    assert (found["site"], found["degrees"]) == ("layers.0.self_attn.o_proj.out", [1, 2])


@pytest.mark.parametrize(
    ("fault", "site"),
    [
        ("change_a_norm_later", f"layers.{NORM_LAYER}.input_layernorm.out"),
        ("receive_a_wrong_bit", f"layers.{LAYER}.mlp.down_proj.out"),
        ("read_a_stale_buffer", f"layers.{LAYER}.mlp.down_proj.out"),
        ("lose_the_last_16_bytes", "layers.0.self_attn.o_proj.out"),
    ],
)
def test_ranks_that_differ_end_generation_with_the_site(fault, site, seed_fault, command):
    seed_fault(fault)
    outcome = command("generate", INT4, "-tp", 2, *IDS, *SHORT, "--check", "full")
    assert outcome.status == 1
    error = outcome.json()["error"]
    assert error["code"] == "E-RANK-DIVERGED"
    assert "differs from rank 0 on rank 1" in error["message"]
    assert f"First at {site} (whole) on rank 1." in error["message"]


def test_a_step_that_differs_can_be_run_again(seed_fault, command):
    """Without --check full the step is named, and the replay file leads to the site."""
    seed_fault("receive_a_wrong_bit")
    outcome = command("generate", INT4, "-tp", 2, *IDS, *SHORT)
    error = outcome.json()["error"]
    assert (outcome.status, error["code"]) == (1, "E-RANK-DIVERGED")
    assert error["message"].startswith("step 1: the residual stream or a normed input differs")
    replay = error["message"].rpartition("isobit verify --replay ")[2]
    again = command("verify", INT4, "--replay", replay, "--launcher", "local", "--json")
    assert again.status == 1
    assert again.json()["first_difference"]["site"] == f"layers.{LAYER}.mlp.down_proj.out"


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("flip_a_weight_bit", f"rank 1: layers.{LAYER}.mlp.down_proj, atom 5: the outputs add up"),
        ("ignore_the_tail_of_k", f"rank 0: layers.{LAYER}.mlp.gate_proj: the outputs add up to"),
        ("sum_in_another_order", "rank 0: layers.0.self_attn.o_proj: atoms were not added along"),
    ],
)
def test_a_wrong_product_is_named_at_one_degree(fault, what, seed_fault, command):
    """Every rank has the same wrong sum; the weights as they were loaded know better."""
    seed_fault(fault)
    outcome = command("generate", INT4, "-tp", 2, *IDS, *SHORT, "--check", "full")
    error = outcome.json()["error"]
    assert (outcome.status, error["code"]) == (1, "E-RANK-PRODUCT")
    assert what in error["message"]


def test_check_off_compares_nothing(seed_fault, command):
    seed_fault("receive_a_wrong_bit")
    outcome = command("generate", INT4, "-tp", 2, *IDS, *SHORT, "--check", "off")
    assert outcome.status == 0
    assert outcome.json()["digests_agree"] is None


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("change_a_norm", f"layers.{NORM_LAYER}.input_layernorm: "),
        ("hold_another_kv_head", f"layers.{LAYER}.self_attn.k_proj, kv head 0: "),
    ],
)
def test_what_ranks_hold_alike_is_compared_after_loading(fault, what, seed_fault, command):
    seed_fault(fault)
    outcome = command("generate", INT4, "-tp", 4, *IDS, *SHORT)
    error = outcome.json()["error"]
    assert (outcome.status, error["code"]) == (1, "E-RANK-DIFFERS")
    assert what in error["message"]
    assert "on rank 1" in error["message"]


def test_a_replicated_norm_that_differs_is_named_without_another_degree(seed_fault, command):
    seed_fault("change_a_norm")
    assert first_difference(command, INT4, "2") == {
        "site": f"layers.{NORM_LAYER}.input_layernorm.out",
        "part": "whole",
        "step": 0,
        "degrees": [2, 2],
        "rank": 1,
    }


def test_one_row_of_nan_ends_its_request_alone(seed_fault):
    """The other requests finish with the bits that they have without it."""
    prompts = [[11 * n + i for i in range(3 + n)] for n in range(5)]
    sampling = [SamplingSettings(max_tokens=6, ignore_eos=True)] * 5
    settings = EngineSettings(plan=PlanSettings(degree=2))

    def run():
        with Engine(INT4, settings, LocalLauncher()) as engine:
            return engine.generate(prompts, sampling).completions

    usual = run()
    seed_fault("nan_in_the_logits")
    found = run()
    assert found[1:] == usual[1:]
    assert found[0].finish_reason == "error"
    assert found[0].error is not None and f"step {NAN_STEP}: NaN or infinity" in found[0].error
    assert found[0].tokens == usual[0].tokens[: NAN_STEP - 1]


# Less than the 300 s that the driver waits for a step.
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["custom", "gather"])
@pytest.mark.parametrize(
    ("fault", "code"),
    [("stop_in_the_second_step", "E-COLL-TIMEOUT"), ("die_in_the_second_step", "E-RANK-DIED")],
)
def test_a_silent_rank_is_named_in_time(fault, code, mode, seed_fault):
    """Survivors wait for the collective's timeout and not longer; nothing stays behind."""
    if mode == "gather" and code == "E-COLL-TIMEOUT":
        code = "E-COLL-FAILED"  # gloo knows that it waits, but not for whom
    shared = set(SHARED_MEMORY.iterdir())
    seed_fault(fault)
    settings = EngineSettings(
        plan=PlanSettings(degree=3), all_reduce=mode, collective_timeout_s=4.0
    )
    sampling = SamplingSettings(max_tokens=4, ignore_eos=True)
    with Engine(INT4, settings, LocalLauncher()) as engine, pytest.raises(RankFault) as error:
        engine.generate([[1, 2, 3]], [sampling])
    assert error.value.code == code
    assert "layers.0.self_attn.o_proj.out" in error.value.message or "rank 1" in str(error.value)
    if mode == "custom":
        assert "rank 1" in error.value.message
    assert set(SHARED_MEMORY.iterdir()) <= shared


def test_nan_in_the_logits_is_an_error_and_never_a_token(seed_fault, command):
    """The tokens of the steps before it came out, and nothing after them."""
    seed_fault("nan_in_the_logits")
    arguments = ("--max-tokens", 8, "--ignore-eos", "--launcher", "local")
    outcome = command("generate", INT4, "-tp", 2, *IDS, *arguments)
    assert outcome.status == 1
    assert len(outcome.stdout.split()) == NAN_STEP - 1
    assert f"E-NUM-LOGITS step {NAN_STEP}:" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_fault_that_does_not_exist_is_no_silent_success(seed_fault, command):
    seed_fault("misspelt")
    outcome = command("generate", INT4, *IDS, *SHORT)
    assert (outcome.status, outcome.json()["error"]["code"]) == (2, "E-FAULT")
