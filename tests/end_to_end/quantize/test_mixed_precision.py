"""Mixed precision: what is measured, what is chosen, what is written."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from isobit.errors import InputError
from isobit.launch.text.calibration_text import calibration_text
from isobit.runtime.calibration.calibrate import CalibrateSettings, quantize_calibrated
from isobit.runtime.calibration.job import CalibrationJob, job_from_message
from isobit.runtime.calibration.mixed_precision import with_budget
from isobit.runtime.calibration.sensitivity import SensitivitySettings, measure_sensitivity
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.transport.wire import decode, encode
from isobit.shard.checkpoint.safetensors_file import read_header
from isobit.shard.quantize.folder import quantize_folder
from isobit.shard.quantize.fused import fused_products
from isobit.shard.quantize.method import MethodSettings
from isobit.shard.quantize.scheme import QuantizeSettings
from isobit.shard.quantize.source import open_dense

from ...support import DENSE, ROOT, all_logits, copy_model, save_tensors
from ..test_oracle import FLOAT32_BOUND, IDS, oracle_logits, relative_error

LENGTH = 64
STORED = QuantizeSettings(group_size=32)
GPTQ = MethodSettings(method="gptq")
BUDGET = 5.0


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    """Four pieces of the repository's own text, int64 [4, LENGTH]."""
    files = [ROOT / "docs" / "quantization.md", ROOT / "README.md"]
    return calibration_text(DENSE, files, 4, LENGTH).samples


@pytest.fixture(scope="module")
def made(samples, tmp_path_factory) -> tuple[Path, QuantizeSettings]:
    """The example model by GPTQ within BUDGET, and the settings that came out."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    return out, quantize_mixed(out, samples)


def quantize_mixed(out: Path, samples: torch.Tensor, degree: int = 1) -> QuantizeSettings:
    stored = with_budget(DENSE, out, samples, STORED, GPTQ, BUDGET)
    settings = CalibrateSettings(stored=stored, method=GPTQ)
    launcher = LocalLauncher() if degree > 1 else None
    quantize_calibrated(DENSE, out, samples, settings, degree=degree, launcher=launcher)
    return stored


@pytest.fixture(scope="module")
def float32_model(tmp_path_factory) -> Path:
    """The example model in float32, so that rounding of activations hides nothing."""
    folder = copy_model(DENSE, tmp_path_factory.mktemp("dense") / "model", dtype="float32")
    tensors = load_file(DENSE / "model.safetensors")
    save_tensors(folder, {name: tensor.float() for name, tensor in tensors.items()})
    return folder


@torch.no_grad()
def oracle_log_probabilities(model: Path, samples: torch.Tensor) -> torch.Tensor:
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).double().eval()
    return oracle(samples).logits.log_softmax(dim=-1)


@pytest.mark.parametrize("method", [None, GPTQ], ids=["nearest", "gptq"])
def test_a_sensitivity_is_that_of_a_model_with_only_these_products_quantized(
    method, float32_model, samples, tmp_path
):
    """transformers in float64, on a folder in which all else was kept dense."""
    source = open_dense(float32_model)
    products = {"layers.0.self_attn.[qkv]*": 0, "layers.3.mlp.down_proj": 15}
    chosen = [fused_products(source.spec)[number] for number in products.values()]
    settings = SensitivitySettings(stored=STORED, method=method)
    costs = measure_sensitivity(source, chosen, samples, settings, tmp_path / "out")
    dense = oracle_log_probabilities(float32_model, samples)
    for pattern, each in zip(products, chosen, strict=True):
        for bits in (4, 8) if method is None else (4,):
            out = tmp_path / f"{bits}-{each.name}"
            stored = replace(STORED, keep=("*=16", f"{pattern}={bits}"))
            if method is None:
                quantize_folder(float32_model, out, stored)
            else:
                alone = CalibrateSettings(stored=stored, method=method)
                quantize_calibrated(float32_model, out, samples, alone)
            ours = oracle_log_probabilities(out, samples)
            wanted = float((dense.exp() * (dense - ours)).sum(dim=-1).mean())
            # Logits in float32 are off by some 1e-6 of the largest, 20; the divergence is the
            # square of differences 1000 times as large as that, or more.
            assert costs[each.name][bits] == pytest.approx(wanted, rel=2e-3), (pattern, bits)
    assert all(each[16] == 0 for each in costs.values())


def test_what_is_written_keeps_the_budget_exactly(made):
    out, stored = made
    assert stored.mixed is not None
    source = open_dense(DENSE)
    modules = {m.name: m.n * m.k for each in fused_products(source.spec) for m in each.modules}
    written = sum(
        entry.nbytes
        for entry in read_header(out / "model.safetensors")
        if entry.name.rpartition(".")[0] in modules
        and not entry.name.endswith(("bias", "weight_shape"))
    )
    average = 8 * written / sum(modules.values())
    assert average == stored.mixed.average
    assert 4.75 < average <= BUDGET


def test_the_report_says_what_was_chosen_and_why(made):
    out, stored = made
    report = json.loads((out / "quantization_report.json").read_text())
    mixed = report["settings"]["mixed"]
    assert (mixed["budget"], mixed["average"]) == (BUDGET, stored.mixed.average)
    chosen = {name: each["bits"] for name, each in mixed["products"].items()}
    quantized = {name: each["bits"] for name, each in report["modules"].items()}
    assert quantized == {name: bits for name, bits in chosen.items() if bits != 16}
    assert {4, 8} <= {*chosen.values()}
    for name, each in mixed["products"].items():
        assert each["kl"]["4"] > each["kl"]["8"] > each["kl"]["16"] == 0, name


def test_what_engines_fuse_has_one_scheme_and_is_named(made):
    """vLLM gives a fused product the scheme of "Linear" where there is such a target."""
    out, _ = made
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    place = {
        target: name
        for name, group in config["config_groups"].items()
        for target in group["targets"]
    }
    place |= dict.fromkeys(config["ignore"], "dense")
    assert len(config["config_groups"]) > 1
    assert "Linear" not in place
    for layer in range(5):
        prefix = f"model.layers.{layer}."
        for members in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
            names = [f"{prefix}{members[0]}.{each}_proj" for each in members[1]]
            assert len({place[name] for name in names}) == 1


def test_it_loads_in_transformers(made):
    out, _ = made
    assert relative_error(all_logits(out, IDS, "float32"), oracle_logits(out)) < FLOAT32_BOUND


def test_the_same_bits_at_degrees_1_to_4(made):
    out, _ = made
    one = all_logits(out, IDS, "bfloat16")
    for degree in (2, 3, 4):
        assert torch.equal(all_logits(out, IDS, "bfloat16", degree=degree), one), degree


def test_ranks_are_told_the_widths(made):
    """Settings travel as plain values."""
    _, stored = made
    job = CalibrationJob(
        model=DENSE,
        folder=DENSE,
        run="0",
        settings=CalibrateSettings(stored=stored, method=GPTQ),
        samples=4,
        length=LENGTH,
        degree=2,
    )
    assert job_from_message(decode(encode(job.message()))) == job


def test_another_run_on_two_ranks_writes_the_same_bytes(made, samples, tmp_path):
    out, stored = made
    assert quantize_mixed(tmp_path / "again", samples, degree=2) == stored
    for path in out.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_kept_widths_come_first(samples, tmp_path):
    keep = ("layers.0.*=4", "layers.4.mlp.down_proj=16")
    stored = with_budget(DENSE, tmp_path / "out", samples, replace(STORED, keep=keep), None, 5.5)
    assert stored.mixed is not None
    products = stored.mixed.products
    first = [each for name, each in products.items() if ".layers.0." in name]
    assert all(each.bits == 4 and not each.kl for each in first)
    assert products["model.layers.4.mlp.down_proj"].bits == 16
    assert any(each.bits == 8 for each in products.values())
    assert stored.mixed.average <= 5.5


def test_progress_rises_to_its_end(samples, tmp_path):
    seen: list[tuple[int, int]] = []
    with_budget(
        DENSE, tmp_path / "out", samples[:2], STORED, GPTQ, BUDGET, lambda *step: seen.append(step)
    )
    assert seen == sorted(set(seen))
    assert seen[-1][0] == seen[-1][1]
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_refused_before_anything_runs(samples, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(InputError, match=r"E-OUT-WRITE.*are free"):
        with_budget(DENSE, tmp_path / "out", samples, STORED, None, BUDGET)
    assert not list(tmp_path.iterdir())
