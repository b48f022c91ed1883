"""What `isobit quantize` writes, against the definitions of the formats and transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from isobit.runtime.calibration.calibrate import quantize_calibrated
from isobit.runtime.calibration.job import CalibrateSettings
from isobit.shard.formats.scheme import CHANNEL
from isobit.shard.quantize.folder import quantize_folder
from isobit.shard.quantize.method import MethodSettings
from isobit.shard.quantize.scheme import QuantizeSettings

from ...command import Command, command, scratch
from ...support import all_logits, copy_model, save_random_model, save_tensors
from ...unpacked import unpacked_weights
from ..test_oracle import (
    BFLOAT16_BOUND,
    FLOAT32_BOUND,
    IDS,
    SHAPE,
    oracle_logits,
    relative_error,
)

__all__ = ["command", "scratch"]

INT4 = QuantizeSettings(bits=4, group_size=32)
INT8 = replace(INT4, bits=8)
KEPT = ("layers.0.self_attn.*=8", "layers.1.mlp.down_proj=16")
STORED = {
    "gptq": replace(INT4, format="gptq"),
    "gptq-int8-channel": replace(INT8, group_size=CHANNEL, format="gptq"),
    "gptq-mixed": replace(INT4, keep=KEPT, format="gptq"),
    "gptq_v2": replace(INT4, symmetric=False, format="gptq_v2"),
    "gptq_v2-int8": replace(INT8, symmetric=False, format="gptq_v2"),
    "awq": replace(INT4, symmetric=False, format="awq"),
    "awq-kept": replace(INT4, keep=KEPT[1:], format="awq"),
    "ct-int4": INT4,
    "ct-int4-asymmetric": replace(INT4, symmetric=False),
    "ct-int8": INT8,
    "ct-int8-asymmetric": replace(INT8, symmetric=False),
    "ct-int8-channel": replace(INT8, group_size=CHANNEL),
    "ct-w8a8": replace(INT8, group_size=CHANNEL, int8_activations=True),
    "ct-w8a8-static": replace(
        INT8, group_size=CHANNEL, int8_activations=True, static_activations=True
    ),
}
COMPRESSED_TENSORS = [name for name in STORED if name.startswith("ct-")]
# One activation scale per token there, one per token and atom here: a finer rounding.
ACTIVATIONS_BOUND = 0.03
# Rounding to nearest leaves a uniform error in a step: of 15 in the range of 32 random weights, of
# 255 in that of 160. Measured 0.09 and 0.010; a zero point that is off by 1 adds a whole step.
SHARES_OF_ERROR = {4: 0.12, 8: 0.015}


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    """A model with biases, a head of its own, and a tokenizer's file."""
    folder = tmp_path_factory.mktemp("source") / "dense"
    config = Qwen2Config(**{**SHAPE, "num_hidden_layers": 2, "dtype": "bfloat16"})
    save_random_model(folder, Qwen2ForCausalLM(config).bfloat16())
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def made(dense, tmp_path_factory):
    """The folder of a case of STORED, quantized once: to nearest where no text is needed."""
    done: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("made") / name
            if STORED[name].static_activations:
                calibrate(dense, done[name], STORED[name], MethodSettings(method="smoothquant"))
            else:
                quantize_folder(dense, done[name], STORED[name])
        return done[name]

    return make


def calibrate(dense: Path, out: Path, stored: QuantizeSettings, method: MethodSettings) -> None:
    samples = torch.randint(0, 130, (3, 64), generator=torch.Generator().manual_seed(2))
    quantize_calibrated(dense, out, samples, CalibrateSettings(stored=stored, method=method))


def unpacked_folder(folder: Path, dense: Path, out: Path) -> Path:
    """A dense float32 model of the unpacked weights of a folder, for transformers."""
    weights = unpacked_weights(folder)
    tensors = {
        name: tensor.float()
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.rpartition(".")[0] not in weights or name.endswith(".bias")
    }
    tensors |= {f"{name}.weight": weight.contiguous() for name, weight in weights.items()}
    save_tensors(copy_model(dense, out, dtype="float32"), tensors)
    return out


@pytest.mark.parametrize("name", [name for name in STORED if not STORED[name].int8_activations])
def test_logits_are_those_of_the_unpacked_weights(made, dense, name, tmp_path):
    oracle = unpacked_folder(made(name), dense, tmp_path / "oracle")
    ours = all_logits(made(name), IDS, "float32")
    assert relative_error(ours, oracle_logits(oracle)) < FLOAT32_BOUND


@pytest.mark.parametrize("name", [name for name in STORED if name != "ct-w8a8-static"])
def test_unpacked_weights_are_near_the_source(made, dense, name):
    source, weights = load_file(dense / "model.safetensors"), unpacked_weights(made(name))
    assert len(weights) == 14 - (name in ("gptq-mixed", "awq-kept"))
    for module, weight in weights.items():
        wanted = source[f"{module}.weight"].float()
        share = (weight - wanted).norm() / wanted.norm()
        assert share < SHARES_OF_ERROR[STORED[name].bits], module


@pytest.mark.parametrize("name", STORED)
def test_the_same_bits_at_every_degree(made, name):
    one = all_logits(made(name), IDS, "bfloat16")
    for degree in (2, 3, 4):
        assert torch.equal(all_logits(made(name), IDS, "bfloat16", degree=degree), one), degree


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize("name", STORED)
def test_inspect_finds_nothing_wrong(made, name, command: Command):
    outcome = command("inspect", made(name), "--json")
    assert outcome.status == 0
    assert "not known" not in outcome.stderr


@pytest.mark.parametrize("name", STORED)
def test_what_belongs_to_the_model_is_carried_along(made, dense, name):
    for file in ("tokenizer.json", "generation_config.json"):
        assert (made(name) / file).read_bytes() == (dense / file).read_bytes()
    config = json.loads((made(name) / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((dense / "config.json").read_text())
    repeated = made(name) / "quantize_config.json"
    if quantization["quant_method"] == "gptq":
        assert json.loads(repeated.read_text()) == quantization
    else:
        assert not repeated.exists()


def test_the_config_of_gptq_is_gptqmodels(made):
    config = json.loads((made("gptq-mixed") / "config.json").read_text())["quantization_config"]
    settings = ("bits", "group_size", "sym", "desc_act", "lm_head", "checkpoint_format")
    assert [config[name] for name in settings] == [4, 32, True, False, False, "gptq"]
    dynamic = config["dynamic"]
    assert len(dynamic) == 6
    assert dynamic[r"-:^model\.layers\.1\.mlp\.down_proj$"] == {}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"):  # the last one for vLLM
        key = rf"+:^model\.layers\.0\.self_attn\.{name}$"
        assert dynamic[key] == {"bits": 8, "group_size": 32}


def test_the_config_of_awq_is_autoawqs(made):
    config = json.loads((made("awq-kept") / "config.json").read_text())["quantization_config"]
    settings = ("bits", "group_size", "zero_point", "version")
    assert [config[name] for name in settings] == [4, 32, True, "gemm"]
    down = "model.layers.1.mlp.down_proj"
    assert config["modules_to_not_convert"] == ["lm_head", down]
    assert config["dynamic"] == {r"-:^model\.layers\.1\.mlp\.down_proj$": {}}


def test_calibrated_weights_are_the_same_in_gptq_v1_v2_and_awq(dense, tmp_path):
    """Each layer is calibrated on what its reader makes of the layers before."""
    method = MethodSettings(method="gptq", desc_act=True)
    unpacked = []
    for name in ("gptq", "gptq_v2", "awq"):
        calibrate(dense, tmp_path / name, replace(INT4, format=name), method)
        unpacked.append(unpacked_weights(tmp_path / name))
        repeated = (tmp_path / name / "quantize_config.json").exists()
        assert repeated == (name != "awq")
    for weights in unpacked[1:]:
        assert weights.keys() == unpacked[0].keys()
        assert all(torch.equal(weights[name], unpacked[0][name]) for name in weights)


@pytest.mark.parametrize("dequantized", [False, True])
@pytest.mark.parametrize("name", COMPRESSED_TENSORS)
@torch.no_grad()
def test_transformers_loads_every_scheme_of_compressed_tensors(made, name, dequantized):
    """Weights bit for bit, and logits."""
    given = {}
    if dequantized:
        given["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(made(name), dtype=torch.float32, **given).eval()
    logits = model(torch.tensor([IDS])).logits[0]
    stored = STORED[name]
    # Dequantizing while loading rounds weights to the dtype of their scales, bfloat16.
    dequantized = dequantized or not stored.symmetric
    bound = BFLOAT16_BOUND if dequantized else FLOAT32_BOUND
    if name == "ct-w8a8":
        bound = ACTIVATIONS_BOUND
    if not (dequantized and stored.int8_activations):  # they stay float there
        assert relative_error(all_logits(made(name), IDS, "float32"), logits) < bound
    for module, weight in unpacked_weights(made(name)).items():
        wanted = weight.bfloat16().float() if dequantized else weight
        assert torch.equal(model.get_submodule(module).weight, wanted), module
