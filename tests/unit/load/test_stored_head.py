"""Tied embeddings: the bytes of the files decide, as in transformers; every command follows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from isobit.runtime.engine.preflight import prepare
from isobit.runtime.settings.engine import EngineSettings
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.contents.stored_head import with_stored_head
from isobit.shard.estimate.memory import memory_model
from isobit.shard.formats import PACKERS
from isobit.shard.formats.codes import WholeWeight
from isobit.shard.formats.scheme import WeightScheme
from isobit.shard.inspect import inspect_folder
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.pad import PadSettings, pad_folder
from isobit.shard.plan.plan import PlanSettings, make_plan
from isobit.shard.verify.verify_load import compare, file_fingerprints, rank_fingerprints

from ...random_folder import save_random_folder
from ...support import all_logits
from ..inspect.inspection import codes_of, finding, set_config

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "hidden_act": "silu",
}
IDS = [3, 17, 99, 150, 4, 4, 71]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOLERANCE = 2e-4
"""Of the largest logit: both compute in float32, in another order of sums."""


def own_head(seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.08 * torch.randn(160, 64, generator=generator)).to(torch.bfloat16)


def oracle(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).abs().max()) < TOLERANCE * float(theirs.abs().max())


def head_case(folder: Path, case: str) -> Path:
    if case == "own":
        save_random_folder(folder, CONFIG, **{HEAD: own_head()})
    elif case == "equal":
        tensors = save_random_folder(folder, CONFIG)
        save_random_folder(folder, CONFIG, **{HEAD: tensors[EMBEDDING].clone()})
    elif case == "head alone":
        tensors = save_random_folder(folder, CONFIG)
        save_random_folder(folder, CONFIG, **{EMBEDDING: None, HEAD: tensors[EMBEDDING]})
    else:
        save_random_folder(folder, CONFIG)
    return folder


@pytest.mark.parametrize(
    ("case", "tied", "warned"),
    [("own", False, True), ("equal", True, False), ("head alone", True, False), ("", True, False)],
)
def test_the_head_that_transformers_uses(tmp_path, case, tied, warned, caplog):
    folder = head_case(tmp_path / "m", case)
    spec, _ = prepare(folder, EngineSettings())
    assert spec.tied_embeddings == tied
    assert ("tie_word_embeddings" in caplog.text) == warned
    ours = all_logits(folder, IDS, "float32")
    assert_close(ours, oracle(folder))
    for degree in (2, 3, 4):
        assert torch.equal(all_logits(folder, IDS, "float32", degree=degree), ours)
    report = inspect_folder(folder)
    assert report.verdict == ("suspicious" if warned else "healthy")
    assert codes_of(report, "warning") == ({"W-CKPT-HEAD"} if warned else set())


@pytest.mark.parametrize("case", ["own", "head alone"])
def test_loading_is_proved_and_memory_counted_with_the_stored_head(tmp_path, case):
    folder = head_case(tmp_path / "m", case)
    checkpoint = open_checkpoint(folder)
    spec = with_stored_head(read_spec(folder), checkpoint)
    plan = make_plan(spec, PlanSettings(degree=2))
    found = []
    for rank in range(2):
        weights = load_rank(checkpoint, spec, plan, rank, torch.float32)
        found.append(rank_fingerprints(checkpoint, spec, plan, rank, weights))
        model = memory_model(spec, "float32", 8, checkpoint.entries)
        held = model.ranks(plan)[rank].weights.embeddings
        table = 0 if weights.embedding is None else weights.embedding.nbytes
        assert held - table >= weights.head.nbytes - 4096
        assert (weights.embedding is None) == spec.tied_embeddings
    assert compare(file_fingerprints(checkpoint, spec, torch.float32), found) == []


def test_a_quantized_head_of_its_own(tmp_path):
    """Against transformers on the same numbers, multiplied out."""
    scheme = WeightScheme(format="pack-quantized", bits=4, group_size=32)
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (160, 64), generator=generator, dtype=torch.uint8)
    scales = torch.full((160, 2), 0.02)
    dense = (codes.float() - 8) * scales.repeat_interleave(32, dim=1)
    plain = tmp_path / "plain"
    save_random_folder(plain, {**CONFIG, "tie_word_embeddings": False}, **{HEAD: dense})
    folder = tmp_path / "quantized"
    tensors = save_random_folder(folder, CONFIG)
    packed = PACKERS["pack-quantized"](
        "lm_head", WholeWeight(codes=codes, scales=scales, zeros=None, g_idx=None), scheme
    )
    contiguous = {name: tensor.contiguous() for name, tensor in packed.items()}
    save_file({**tensors, **contiguous}, folder / "model.safetensors")
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    group = {"targets": ["lm_head"], "weights": {**weights, "group_size": 32}}
    set_config(
        folder,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": group},
            "ignore": [],
        },
    )
    ours = all_logits(folder, IDS, "float32")
    assert_close(ours, oracle(plain))
    assert torch.equal(all_logits(folder, IDS, "float32", degree=3), ours)
    assert finding(inspect_folder(folder), "W-CKPT-HEAD")


def test_a_padded_copy_says_that_the_head_is_its_own(tmp_path):
    folder = head_case(tmp_path / "m", "own")
    pad_folder(folder, tmp_path / "padded", PadSettings(intermediate_size=160, vocab=True))
    assert read_spec(tmp_path / "padded").tied_embeddings is False
    assert torch.equal(load_file(tmp_path / "padded" / "model.safetensors")[HEAD][:160], own_head())


def test_untied_without_a_head_is_damaged(tmp_path, error_of):
    folder = tmp_path / "m"
    save_random_folder(folder, {**CONFIG, "tie_word_embeddings": False})
    error = error_of(prepare, folder, EngineSettings())
    assert (error.code, error.kind) == ("E-CKPT-TENSOR", "damaged")
    assert finding(inspect_folder(folder), "E-CKPT-TENSOR").what in error.message


def leftovers(folder: Path, **extra: torch.Tensor) -> Path:
    save_random_folder(folder, CONFIG, **extra)
    return folder


ATTENTION = "model.layers.0.self_attn."
FREQUENCIES = 10000.0 ** (-torch.arange(0, 8, 2).float() / 8)


@pytest.mark.parametrize(
    ("name", "tensor", "explained"),
    [
        (ATTENTION + "rotary_emb.inv_freq", FREQUENCIES, True),
        (ATTENTION + "rotary_emb.inv_freq", FREQUENCIES.bfloat16(), True),
        (ATTENTION + "rotary_emb.inv_freq", FREQUENCIES.half(), True),
        ("model.rotary_emb.inv_freq", FREQUENCIES, True),
        (ATTENTION + "rotary_emb.inv_freq", 1.01 * FREQUENCIES, False),
        (ATTENTION + "rotary_emb.inv_freq", FREQUENCIES[:3], False),
        (ATTENTION + "masked_bias", torch.tensor(-1e4), False),
        ("model.layers.0.attn.masked_bias", torch.tensor(-1e4), True),
        ("model.layers.0.attn.bias", torch.ones(1, 1, 9, 9).tril().bool(), True),
        ("model.layers.0.attn.bias", torch.ones(1, 1, 9, 9).bool(), False),
        (ATTENTION + "q_proj.bias", torch.zeros(64), True),
        (ATTENTION + "q_proj.weight_norm", torch.ones(64, 1), False),
        ("adapter.weight", torch.ones(4, 4), False),
    ],
)
def test_what_nothing_needs_is_explained_by_its_bytes(tmp_path, name, tensor, explained, caplog):
    """inspect, and what every command that reads the headers warns of."""
    folder = leftovers(tmp_path / "m", **{name: tensor})
    report = inspect_folder(folder)
    explained = explained or name == ATTENTION + "masked_bias"
    assert codes_of(report) == {"N-CKPT-EXTRA" if explained else "W-CKPT-EXTRA"}
    prepare(folder, EngineSettings())
    assert (name in caplog.text) != explained


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (("self_attn.q_proj",), "attention_bias"),
        (("mlp.up_proj",), "mlp_bias"),
        (("self_attn.o_proj", "mlp.down_proj"), "attention_bias and mlp_bias"),
    ],
)
def test_biases_that_config_does_not_announce(tmp_path, names, field, error_of):
    sizes = {"mlp.up_proj": 128}
    extra = {f"model.layers.1.{n}.bias": torch.ones(sizes.get(n, 64)) for n in names}
    folder = leftovers(tmp_path / "m", **extra)
    error = error_of(prepare, folder, EngineSettings())
    found = finding(inspect_folder(folder), "E-CKPT-BIAS")
    assert (error.code, error.kind) == ("E-CKPT-BIAS", "damaged")
    assert found.what in error.message
    assert f"Set {field} to true" in error.message


def test_biases_that_no_model_of_the_family_has(tmp_path, error_of):
    """attention_bias is no way out for Mistral: transformers drops the biases all the same."""
    extra = {"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}
    folder = leftovers(tmp_path / "m", **extra)
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (folder / "config.json").write_text(json.dumps(fields))
    error = error_of(prepare, folder, EngineSettings())
    assert error.code == "E-CKPT-BIAS"
    assert "No mistral model has them, whatever attention_bias says" in error.message


def test_the_spec_of_a_dense_tied_folder_is_untouched(tmp_path):
    folder = head_case(tmp_path / "m", "")
    spec = read_spec(folder)
    assert with_stored_head(spec, open_checkpoint(folder)) == spec
    untied = dataclasses.replace(spec, tied_embeddings=False)
    assert with_stored_head(untied, open_checkpoint(folder)) == untied
