"""The doctor names what numbers do wrong: overflow in a dtype, and loss by quantization."""

from __future__ import annotations

import os
import shlex
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from isobit.runtime.doctor.all_checks import CHECKS
from isobit.runtime.doctor.case import Case
from isobit.runtime.doctor.context import Context
from isobit.runtime.doctor.diagnosis import Diagnosis, decisive
from isobit.runtime.doctor.examine import examine
from isobit.runtime.settings.engine import EngineSettings
from isobit.runtime.worker.forked_launcher import ForkedLauncher
from isobit.shard.plan.plan import PlanSettings

from ..command import Command, command
from ..pathologies import OVERFLOWING_LAYER, make
from ..random_folder import save_random_folder
from ..support import DENSE, INT4, ROOT, copy_model, save_tensors
from ..unit.configs import config
from . import doctor_number_faults
from .doctor_cases import DEGREES, PROMPTS

__all__ = ["command"]

SITE = f"layers.{OVERFLOWING_LAYER}.mlp.down_proj.in"
OTHERS = ("plan", "kernels", "degrees")


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> Path:
    return make("overflow", tmp_path_factory.mktemp("numbers") / "overflow")


@pytest.fixture(scope="module")
def outliers(tmp_path_factory) -> Path:
    return make("outliers", tmp_path_factory.mktemp("numbers") / "outliers")


def diagnose(
    model: Path,
    degree: int,
    *checks: str,
    dtype: str = "auto",
    reference: Path | None = None,
    quick: bool = True,
    **engine,
) -> Diagnosis:
    """The diagnosis of some checks."""
    settings = EngineSettings(plan=PlanSettings(degree=degree), threads=1, dtype=dtype, **engine)
    case = Case(
        model=model,
        engine=settings,
        prompts=PROMPTS,
        max_tokens=3,
        quick=quick,
        reference=reference,
    )
    with Context(case, ForkedLauncher) as context:
        results = examine(context, [check for check in CHECKS if check.name in checks])
    return Diagnosis(case=case.report(), checks=results, decisive=decisive(results))


def largest_inner_activation(model: Path) -> float:
    """What transformers has there in bfloat16, over the prompts of the case."""
    found = [0.0]
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    down = theirs.model.layers[OVERFLOWING_LAYER].mlp.down_proj
    down.register_forward_pre_hook(lambda _, x: found.append(float(x[0].abs().max())))
    with torch.no_grad():
        for prompt in PROMPTS:
            theirs(torch.tensor([prompt]))
    return max(found)


@pytest.mark.parametrize("degree", DEGREES)
def test_an_overflow_is_named_with_its_site_and_its_number(degree, overflowing):
    report = diagnose(overflowing, degree, *OTHERS, "numbers", dtype="float16").report()
    assert (report["verdict"], report["site"], report["layer"], report["op"]) == (
        "numeric-overflow",
        SITE,
        OVERFLOWING_LAYER,
        "mlp.down_proj",
    )
    assert report["confidence"]["level"] == "high"
    absmax = report["evidence"][1]
    assert absmax["threshold"] == 65504
    # Both are sums in bfloat16, of which each operation rounds one part in 256.
    assert absmax["measured"] == pytest.approx(largest_inner_activation(overflowing), rel=0.05)
    number = f"{absmax['measured']:.1e}".replace("e+0", "e")
    assert report["what"] == (
        f"E-NUM-OVERFLOW {SITE} rank {report['rank']}: absmax {number} > 65504. "
        "The model was trained in bfloat16; run with --dtype bfloat16"
    )
    assert f"-tp {degree} --dtype bfloat16 -p TEXT" in report["next_step"]


def test_the_same_model_is_healthy_in_bfloat16(overflowing):
    diagnosis = diagnose(overflowing, 2, "numbers")
    assert diagnosis.decisive is None
    (note,) = diagnosis.checks[0].findings
    assert (note.severity, note.site) == ("note", SITE)
    assert "would overflow in float16" in note.what
    lengths = [prompt["length"] for prompt in diagnosis.checks[0].measured["prompts"]]
    assert lengths == [*map(len, PROMPTS), 50, 51]


def test_a_model_that_fits_float16_is_healthy_in_it():
    diagnosis = diagnose(INT4, 2, "numbers", dtype="float16", quick=False)
    assert [result.severity for result in diagnosis.checks] == ["ok"]
    assert diagnosis.checks[0].measured["prompts"][-1]["length"] == 512


def test_an_overflow_inside_a_kernel_is_told_from_one_of_the_dtype(tmp_path, monkeypatch):
    """Only prompts of one length show it, and the true result would fit."""
    save_random_folder(tmp_path, config())
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    name = doctor_number_faults.overflow_inside_a_short_product.__name__
    monkeypatch.setenv("ISOBIT_FAULT", f"tests.faults.doctor_number_faults:{name}")
    report = diagnose(tmp_path, 2, *OTHERS, "numbers", dtype="float16").report()
    site = f"layers.{doctor_number_faults.LAYER}.mlp.down_proj.partial"
    assert (report["verdict"], report["site"]) == ("kernel-fault", site)
    by_length = report["evidence"][-1]["measured"]
    assert by_length == "7: finite, 52: finite, 50: not finite, 51: finite"


def test_logits_that_are_all_alike_are_no_answer(tmp_path):
    save_random_folder(tmp_path / "source", config())
    folder = copy_model(tmp_path / "source", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].zero_()
    save_tensors(folder, tensors)
    report = diagnose(folder, 2, *OTHERS, "numbers").report()
    assert (report["verdict"], report["site"]) == ("checkpoint-damaged", "norm.out")
    assert report["confidence"]["level"] == "low"


@pytest.mark.parametrize("degree", DEGREES)
def test_int4_to_nearest_of_outliers_is_a_loss_and_the_next_step_mends_it(
    degree, outliers, tmp_path, command: Command
):
    model = tmp_path / "int4"
    assert command("quantize", outliers, model, "--group-size", 32).status == 0
    diagnosis = diagnose(model, degree, "kernels", "reference", reference=outliers)
    report = diagnosis.report()
    assert (report["verdict"], report["checks"][0]["status"]) == ("quantization-loss", "ok")
    assert report["evidence"][0]["measured"] > report["evidence"][0]["threshold"] == 0.2
    words = shlex.split(report["next_step"])
    assert words[:3] == ["isobit", "quantize", str(outliers)]
    assert command(*words[1:]).status == 0
    mended = diagnose(Path(words[3]), degree, "reference", reference=outliers)
    assert mended.verdict == "healthy"
    predicted = diagnosis.checks[1].measured["proposal"]["divergence"]
    # The sum of parts is within a fifth of the whole (docs/quantization.md), on other text.
    assert mended.checks[0].measured["quantization"]["kl"] == pytest.approx(predicted, rel=0.5)


@pytest.mark.parametrize(
    "options",
    [
        ("--scheme", "int8"),
        ("--method", "gptq", "--text", tarfile.__file__, "--samples", 8, "--length", 128),
    ],
    ids=["int8", "gptq"],
)
def test_what_quantizes_well_is_healthy(options, tmp_path, command: Command):
    model = tmp_path / "model"
    assert command("quantize", DENSE, model, "--group-size", 32, *options).status == 0
    diagnosis = diagnose(model, 2, "reference", reference=DENSE)
    assert [result.severity for result in diagnosis.checks] == ["ok"]


def test_cutting_and_adding_cost_nothing_but_with_the_library():
    # Two ranks have but one order in which to add.
    (result,) = diagnose(INT4, 3, "reference", quick=False, all_reduce="library").checks
    assert result.severity == "note"
    parts = result.measured["run"]
    assert parts["sharding"] == 0 < parts["reduction_order"]
    # What bfloat16 costs is 20 to 200 times less than 4 bits do (docs/quantization.md).
    assert 0 < parts["rounding"] < 0.01


@pytest.mark.parametrize("kind", ["quantized", "smaller", "missing"])
def test_a_reference_of_no_use_is_no_verdict(kind, tmp_path):
    save_random_folder(tmp_path / "smaller", config())
    folder = {"quantized": INT4, "smaller": tmp_path / "smaller", "missing": tmp_path / "missing"}
    (result,) = diagnose(INT4, 2, "reference", reference=folder[kind]).checks
    assert result.severity == "warning"
    assert "not compared" in result.findings[0].what
