"""The doctor names the fault of a rank and its place, at two degrees."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from isobit.runtime.doctor.diagnosis import Diagnosis

from ..random_folder import save_random_folder
from ..support import GOLDEN, INT4, ROOT
from ..unit.configs import config
from . import doctor_faults, seeded
from .doctor_cases import DEGREES, diagnose

LAYERS = seeded.LAYER + 1
LATER = ["degrees", "numbers", "reference"]


class Place(NamedTuple):
    """What the report has to say; what is None there has to be None here."""

    verdict: str
    site: str | None
    layer: int | None
    op: str | None
    rank: int | None


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A model with a bias behind every sum."""
    folder = tmp_path_factory.mktemp("doctor") / "llama"
    biased = config(
        architectures=["LlamaForCausalLM"], attention_bias=True, num_hidden_layers=LAYERS
    )
    save_random_folder(folder, biased)
    return folder


@pytest.fixture
def seed_fault(monkeypatch):
    def put(module: str, name: str) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setenv("ISOBIT_FAULT", f"{module}:{name}")

    return put


def place(diagnosis: Diagnosis) -> Place:
    report = diagnosis.report()
    return Place(*(report[key] for key in Place._fields))


NORM, LAYER, OTHER = seeded.NORM_LAYER, seeded.LAYER, doctor_faults.LAYER
SEEDED = {
    "read_a_stale_buffer": Place(
        "collective-fault", f"layers.{LAYER}.mlp.down_proj.out", LAYER, "mlp.down_proj", 1
    ),
    "lose_the_last_16_bytes": Place(
        "collective-fault", "layers.0.self_attn.o_proj.out", 0, "self_attn.o_proj", 1
    ),
    "receive_a_wrong_bit": Place(
        "collective-fault", f"layers.{LAYER}.mlp.down_proj.out", LAYER, "mlp.down_proj", 1
    ),
    "change_a_norm_later": Place(
        "rank-divergence", f"layers.{NORM}.input_layernorm", NORM, "input_layernorm", 1
    ),
    "ignore_the_tail_of_k": Place(
        "kernel-fault", f"layers.{LAYER}.mlp.gate_proj", LAYER, "mlp.gate_proj", 0
    ),
}


def by_turns(faults: Iterable[str]) -> pytest.MarkDecorator:
    """Every fault at one degree, 2 or 4 by turns: a diagnosis runs whole engines."""
    return pytest.mark.parametrize(
        ("fault", "degree"), [(fault, 2 if n % 2 else 4) for n, fault in enumerate(faults)]
    )


@by_turns(SEEDED)
def test_a_fault_of_another_test_is_named(fault, degree, llama, seed_fault):
    seed_fault("tests.faults.seeded", fault)
    assert place(diagnose(llama, degree)) == SEEDED[fault]


def test_a_flipped_bit_of_a_weight_is_named_by_its_atom(seed_fault):
    """The fault is one of degree 2 only; see the seeded fault for the atom."""
    seed_fault("tests.faults.seeded", "flip_a_weight_bit")
    diagnosis = diagnose(INT4, 2)
    site = f"layers.{LAYER}.mlp.down_proj"
    assert place(diagnosis) == Place("rank-divergence", site, LAYER, "mlp.down_proj", 1)
    assert diagnosis.report()["atom"] == 5


@pytest.mark.parametrize("degree", DEGREES)
def test_a_flipped_bit_is_told_from_a_wrong_shard(degree, seed_fault):
    seed_fault("tests.faults.doctor_faults", "flip_a_bit")
    report = diagnose(INT4, degree).report()
    found = (report["verdict"], report["layer"], report["op"], report["rank"])
    assert found == ("rank-divergence", OTHER, "mlp.down_proj", 1)


def test_a_sum_in_another_order_is_named(llama, seed_fault):
    seed_fault("tests.faults.seeded", "sum_in_another_order")
    found = place(diagnose(llama, 2))
    site = "layers.0.self_attn.o_proj.out"
    assert found == Place("collective-fault", site, 0, "self_attn.o_proj", 0)


PRODUCT = f"layers.{OTHER}."
SMALL = {
    "take_the_next_kv_head": Place(
        "shard-fault", PRODUCT + "self_attn.k_proj", OTHER, "self_attn.k_proj", 1
    ),
    "add_the_bias_twice": Place(
        "shard-fault", "layers.0.self_attn.o_proj.out", 0, "self_attn.o_proj", None
    ),
    "compute_in_another_dtype": Place("rank-divergence", None, None, "activations", 1),
    "compute_a_column_wrongly": Place(
        "kernel-fault", PRODUCT + "mlp.up_proj.out", OTHER, "mlp.up_proj", 1
    ),
    "lose_an_atom": Place("kernel-fault", PRODUCT + "mlp.down_proj.out", OTHER, "mlp.down_proj", 1),
    "sum_without_a_rank": Place(
        "collective-fault", PRODUCT + "mlp.down_proj.out", OTHER, "mlp.down_proj", 1
    ),
    "normalize_with_another_epsilon": Place(
        "rank-divergence", None, None, "the model's settings", 1
    ),
    "forget_the_first_token": Place(
        "rank-divergence", PRODUCT + "self_attn.o_proj.in", OTHER, "self_attn.attn", 1
    ),
}


@by_turns(SMALL)
def test_a_fault_of_a_small_model_is_named(fault, degree, llama, seed_fault):
    seed_fault("tests.faults.doctor_faults", fault)
    assert place(diagnose(llama, degree)) == SMALL[fault]


def test_a_kv_head_that_the_wrong_queries_read_is_named(tmp_path, seed_fault):
    """With 3 KV heads at degree 2 each rank keeps two, and shares the middle one."""
    save_random_folder(tmp_path, config(num_key_value_heads=3))
    seed_fault("tests.faults.doctor_faults", "read_the_wrong_kv_head")
    found = place(diagnose(tmp_path, 2))
    site = "layers.0.self_attn.attn.out"
    assert found == Place("shard-fault", site, 0, "self_attn.attn", 1)


@by_turns(["bias_on_all_ranks", "bias_on_all_ranks_but_one"])
def test_a_bias_that_moved_into_the_sum_is_named(fault, degree, llama, seed_fault):
    seed_fault("tests.faults.seeded", fault)
    found = place(diagnose(llama, degree))
    site = "layers.0.self_attn.o_proj.bias"
    assert found == Place("shard-fault", site, 0, "self_attn.o_proj.bias", 0)


@pytest.mark.parametrize(
    ("fault", "model", "op", "verdict", "degree"),
    [
        ("scale_the_wrong_groups", "ct-int4", "mlp.down_proj", "shard-fault", 2),
        ("ignore_g_idx", "gptq-act-order", "self_attn.o_proj", "shard-fault", 4),
        ("pad_with_garbage", "ct-int4", "mlp.down_proj", "shard-fault", 4),
    ],
)
def test_a_shard_that_is_not_the_file_is_named(fault, model, op, verdict, degree, seed_fault):
    seed_fault("tests.faults.doctor_faults", fault)
    report = diagnose(GOLDEN / model, degree).report()
    assert (report["verdict"], report["op"]) == (verdict, op)


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("tests.faults.seeded:stop_in_the_second_step", "collective-fault"),
        ("tests.faults.doctor_faults:sleep_in_the_second_step", "collective-fault"),
        ("tests.faults.seeded:die_in_the_second_step", "environment"),
    ],
)
@pytest.mark.parametrize("degree", DEGREES)
def test_a_rank_that_is_lost_is_named(fault, verdict, degree, llama, monkeypatch):
    monkeypatch.setenv("ISOBIT_FAULT", fault)
    report = diagnose(llama, degree, timeout_s=2.0).report()
    assert (report["verdict"], report["rank"]) == (verdict, 1)
    assert [c["name"] for c in report["checks"] if c["status"] == "skipped"] == LATER
