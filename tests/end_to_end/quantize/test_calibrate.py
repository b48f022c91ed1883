"""Quantizing with calibration, end to end: what is run, what is gained, what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from isobit.kernels.step.step import Step
from isobit.launch.text.calibration_text import calibration_text
from isobit.runtime.calibration.calibrate import CalibrateSettings, embed, quantize_calibrated
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.engine.engine import Engine
from isobit.runtime.forward.decoder import Decoder
from isobit.runtime.forward.layer_runner import LayerRunner
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.scheduler.kv_pages import pages_for
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.trace.tracer import Tracer
from isobit.shard.checkpoint.safetensors_file import SliceReader
from isobit.shard.formats.scheme import CHANNEL
from isobit.shard.load.load import load_layer, load_rank
from isobit.shard.plan.plan import PlanSettings, make_plan
from isobit.shard.quantize.folder import quantize_folder
from isobit.shard.quantize.method import MethodSettings
from isobit.shard.quantize.scheme import QuantizeSettings
from isobit.shard.quantize.source import open_dense

from ...support import (
    DENSE,
    ROOT,
    all_logits,
    copy_model,
    save_random_model,
    save_tensors,
)
from ..test_oracle import FLOAT32_BOUND, IDS, SHAPE, oracle_logits, relative_error

LENGTH = 128
GROUPS = QuantizeSettings(bits=4, group_size=32)
W8A8 = QuantizeSettings(bits=8, group_size=CHANNEL, int8_activations=True)
SETTINGS = {
    "gptq": CalibrateSettings(stored=GROUPS, method=MethodSettings(method="gptq")),
    "gptq-desc-act": CalibrateSettings(
        stored=replace(GROUPS, symmetric=False),
        method=MethodSettings(method="gptq", desc_act=True),
    ),
    "gptq-mixed": CalibrateSettings(
        stored=replace(GROUPS, keep=("layers.0.*=8", "layers.1.mlp.down_proj=16")),
        method=MethodSettings(method="gptq"),
    ),
    "awq": CalibrateSettings(
        stored=replace(GROUPS, symmetric=False), method=MethodSettings(method="awq")
    ),
    "smoothquant": CalibrateSettings(stored=W8A8, method=MethodSettings(method="smoothquant")),
}


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    """Eight pieces of the repository's own text, int64 [8, LENGTH]."""
    files = [ROOT / "docs" / "quantization.md", ROOT / "README.md"]
    return calibration_text(DENSE, files, 8, LENGTH).samples


@pytest.fixture(scope="module")
def made(samples, tmp_path_factory):
    """Quantize once for all tests: the folder and its report."""
    done: dict[str, tuple[Path, dict]] = {}

    def make(name: str) -> tuple[Path, dict]:
        if name not in done:
            out = tmp_path_factory.mktemp("made") / name
            quantize_calibrated(DENSE, out, samples, SETTINGS[name])
            done[name] = out, json.loads((out / "quantization_report.json").read_text())
        return done[name]

    return make


def test_the_calibration_forward_is_the_runtimes(samples):
    """The residual stream behind the last dense layer, bit for bit."""
    source = open_dense(DENSE)
    spec, dtype = source.spec, source.spec.torch_dtype
    plan = make_plan(spec, PlanSettings(degree=1))
    pages, rows = pages_for(LENGTH), torch.arange(LENGTH)
    with SliceReader() as reader:
        residual = torch.stack([embed(source.checkpoint, spec, reader, ids) for ids in samples])
    for layer in range(spec.layers):
        weights = load_layer(source.checkpoint, spec, plan, 0, layer, dtype)
        collectives = GatherCollectives(plan, 0)
        runner = LayerRunner(spec, plan, 0, weights, layer, dtype, LENGTH, collectives)
        for sample in residual:
            sample.copy_(runner.run(sample))
    decoder = Decoder(
        spec,
        plan,
        0,
        load_rank(source.checkpoint, spec, plan, 0, dtype),
        GatherCollectives(plan, 0),
        Tracer(None),
        dtype=dtype,
        kv_pages=pages,
    )
    for ids, mine in zip(samples, residual, strict=True):
        step = Step(
            tokens=ids,
            positions=rows.int(),
            slots=rows,
            sequence=torch.zeros(LENGTH, dtype=torch.int32),
            block_tables=torch.arange(pages, dtype=torch.int32)[None],
            sampled=torch.empty(0, dtype=torch.int64),
        )
        assert torch.equal(decoder.forward(step)[0], mine)


def test_what_is_shown_are_the_inputs_of_the_products(samples):
    """o_proj and down_proj of the last layer, seen from outside: weights and residual suffice."""
    source = open_dense(DENSE)
    spec = replace(source.spec, dtype="float32")
    plan = make_plan(spec, PlanSettings(degree=1))
    with SliceReader() as reader:
        residual = embed(source.checkpoint, spec, reader, samples[0])
    seen: dict[str, torch.Tensor] = {}
    weights = load_layer(source.checkpoint, spec, plan, 0, 0, torch.float32)
    runner = LayerRunner(
        spec,
        plan,
        0,
        weights,
        0,
        torch.float32,
        LENGTH,
        GatherCollectives(plan, 0),
        lambda n, x: seen.update({n: x.clone()}),
    )
    after = runner.run(residual).clone()
    tensors = {k: v.float() for k, v in load_file(DENSE / "model.safetensors").items()}
    layer = "model.layers.0."
    o, gate, up, down = (
        tensors[f"{layer}{name}_proj.weight"]
        for name in ("self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    )
    inner = torch.nn.functional.silu(seen["gate"] @ gate.T) * (seen["gate"] @ up.T)
    torch.testing.assert_close(seen["down"], inner, rtol=1e-4, atol=1e-5)
    expected = residual + seen["o"] @ o.T + seen["down"] @ down.T
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gptq", "gptq-desc-act"])
def test_gptq_errs_less_than_rounding_to_nearest(made, name):
    _, report = made(name)
    assert len(report["modules"]) == 5 * 7
    for module, each in report["modules"].items():
        assert each["layer_error"] < 0.8 * each["nearest_error"], module
        assert each["retries"] == each["dead"] == 0
        assert each["damp_percent"] == 0.01


def test_awq_errs_less_than_rounding_to_nearest(made):
    """q, k and v share their scales, for the sake of all three; one of them may lose a little."""
    _, report = made("awq")
    for module, each in report["modules"].items():
        allowed = 1.1 if module.endswith(("q_proj", "k_proj")) else 1.0
        assert each["layer_error"] < allowed * each["nearest_error"], module


def test_smoothquant_errs_less_than_rounding_to_nearest(made):
    _, report = made("smoothquant")
    ratios = [each["layer_error"] / each["nearest_error"] for each in report["modules"].values()]
    assert sum(ratios) / len(ratios) < 1
    assert all(each["layer_error"] < 1e-3 for each in report["modules"].values())


@pytest.mark.parametrize("name", ["gptq", "gptq-mixed"])
def test_what_is_written_loads_in_transformers(made, name):
    out, _ = made(name)
    assert relative_error(all_logits(out, IDS, "float32"), oracle_logits(out)) < FLOAT32_BOUND


@pytest.mark.parametrize("name", ["gptq-desc-act", "awq"])
def test_what_is_written_with_zero_points_is_what_the_package_unpacks(made, name, tmp_path):
    """Exactly; transformers rounds dequantized weights to the dtype of their scales."""
    out, _ = made(name)
    tensors = load_file(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    group = config.pop("quantization_config")["config_groups"]["group_0"]
    scheme = QuantizationScheme.model_validate({k: v for k, v in group.items() if k != "format"})
    dense = {name: tensor for name, tensor in tensors.items() if "_proj.weight" not in name}
    for packed in [name for name in tensors if name.endswith("weight_packed")]:
        module = packed.removesuffix(".weight_packed")
        parts = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
        stored = {part: tensors[f"{module}.{part}"] for part in parts}
        stored["weight_scale"] = stored["weight_scale"].float()
        unpacked = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
        dense[f"{module}.weight"] = unpacked.float().contiguous()
    oracle = copy_model(DENSE, tmp_path / "oracle")
    save_tensors(oracle, dense)
    assert relative_error(all_logits(out, IDS, "float32"), oracle_logits(oracle)) < FLOAT32_BOUND


def test_w8a8_is_close_to_the_dense_model(made):
    out, _ = made("smoothquant")
    ours = all_logits(out, IDS, "float32")
    assert relative_error(ours, all_logits(DENSE, IDS, "float32")) < 0.1
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"
    inputs = config["config_groups"]["group_0"]["input_activations"]
    assert (inputs["dynamic"], inputs["strategy"]) == (True, "token")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_bits_at_degrees_1_and_2(made, name):
    out, _ = made(name)
    one, two = (all_logits(out, IDS, "bfloat16", degree=degree) for degree in (1, 2))
    assert torch.equal(one, two)


def test_the_engine_generates_alike_at_degrees_1_and_2(made):
    out, _ = made("gptq")
    answers = []
    for degree in (1, 2):
        settings = EngineSettings(plan=PlanSettings(degree=degree), threads=1)
        with Engine(out, settings, LocalLauncher()) as engine:
            batch = engine.generate([IDS[:9]], [SamplingSettings(max_tokens=6, ignore_eos=True)])
        answers.append((batch.completions[0].tokens, batch.completions[0].logits_digests))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_scales_are_folded_where_every_head_has_its_own_values(method, tmp_path):
    """v feeds o here, and all products have biases: as good as to nearest, without any fold."""
    torch.manual_seed(0)
    biases = {"attention_bias": True, "mlp_bias": True}
    shape = {**SHAPE, "num_key_value_heads": SHAPE["num_attention_heads"], **biases}
    dense = save_random_model(tmp_path / "dense", LlamaForCausalLM(LlamaConfig(**shape)))
    stored = W8A8 if method == "smoothquant" else QuantizeSettings(bits=8, group_size=32)
    settings = CalibrateSettings(stored=stored, method=MethodSettings(method=method))
    ids = torch.randint(0, 120, (4, 64), generator=torch.Generator().manual_seed(2))
    report = quantize_calibrated(dense, tmp_path / "out", ids, settings)
    assert any(each.ratio for name, each in report.modules.items() if name.endswith("o_proj"))
    quantize_folder(dense, tmp_path / "nearest", stored)
    wanted, nearest, ours = (
        all_logits(tmp_path / name, IDS, "float32") for name in ("dense", "nearest", "out")
    )
    assert (ours - wanted).norm() < 1.3 * (nearest - wanted).norm()


def test_two_runs_write_the_same_bytes(made, samples, tmp_path):
    out, _ = made("awq")
    quantize_calibrated(DENSE, tmp_path / "again", samples, SETTINGS["awq"])
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_what_lies_in_the_folder(made):
    out, report = made("gptq")
    carried = {path.name for path in DENSE.glob("*token*")} | {"generation_config.json"}
    found = {path.name for path in out.iterdir()}
    assert carried | {"config.json", "model.safetensors", "quantization_report.json"} <= found
    assert report["settings"]["samples"] == 8
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"


def test_progress_rises_to_its_end(samples, tmp_path):
    seen: list[tuple[int, int]] = []
    quantize_calibrated(
        DENSE, tmp_path / "out", samples[:2], SETTINGS["gptq"], lambda *step: seen.append(step)
    )
    assert seen == sorted(set(seen))
    assert seen[-1] == (28, 28)
