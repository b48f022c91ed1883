"""Folding: a layer in float64 computes the same before and after, with every fold of its map."""

from __future__ import annotations

import pytest
import torch

from isobit.shard.model.spec import spec_from_config
from isobit.shard.quantize.folding import Fold, fold, fold_map

from ...random_folder import dense_tensors
from ..configs import config

MHA = config(num_key_value_heads=6, num_hidden_layers=1)
GQA = config(num_hidden_layers=1)
BIASED = config(
    architectures=["LlamaForCausalLM"], attention_bias=True, num_key_value_heads=6,
    num_hidden_layers=1,
)  # fmt: skip
PREFIX = "model.layers.0."


def products(tensors: dict[str, torch.Tensor], x: torch.Tensor, settings: dict) -> torch.Tensor:
    """Layer 0 on hidden states [T, K], attention without rotation or mask, in float64."""
    heads, kv = settings["num_attention_heads"], settings["num_key_value_heads"]

    def norm(name: str, hidden: torch.Tensor) -> torch.Tensor:
        scale = hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        return hidden * scale * tensors[f"{PREFIX}{name}.weight"].double()

    def linear(name: str, hidden: torch.Tensor) -> torch.Tensor:
        out = hidden @ tensors[f"{PREFIX}{name}.weight"].double().T
        bias = tensors.get(f"{PREFIX}{name}.bias")
        return out if bias is None else out + bias.double()

    normed = norm("input_layernorm", x)
    q, k, v = (
        linear(f"self_attn.{n}_proj", normed).view(len(x), count, -1).transpose(0, 1)
        for n, count in (("q", heads), ("k", kv), ("v", kv))
    )
    k, v = (each.repeat_interleave(heads // kv, dim=0) for each in (k, v))
    mixed = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    x = x + linear("self_attn.o_proj", mixed.transpose(0, 1).reshape(len(x), -1))
    normed = norm("post_attention_layernorm", x)
    gate = torch.nn.functional.silu(linear("mlp.gate_proj", normed))
    return x + linear("mlp.down_proj", gate * linear("mlp.up_proj", normed))


@pytest.mark.parametrize("settings", [MHA, GQA, BIASED], ids=["mha", "gqa", "biased"])
def test_a_folded_layer_computes_what_it_did(settings):
    spec = spec_from_config(settings, None)
    tensors = {name: each.double() for name, each in dense_tensors(settings).items()}
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, spec.hidden_size, generator=generator).double()
    wanted = products(tensors, x, settings)
    changed = set()
    for step in fold_map(spec, 0).folds:
        k = tensors[f"{step.targets[0]}.weight"].shape[1]
        scales = torch.rand(k, generator=generator) * 4 + 0.1
        before = {name: each.clone() for name, each in tensors.items()}
        folded = fold(tensors, step, scales)
        assert all(torch.equal(tensors[name], each) for name, each in before.items())
        assert not any(torch.equal(tensors[name], each) for name, each in folded.items())
        tensors |= folded
        changed |= set(folded)
    assert len(changed) >= 8
    assert (products(tensors, x, settings) - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def test_folded_weights_are_those_of_float64_rounded_once():
    tensors = dense_tensors(MHA)
    step = fold_map(spec_from_config(MHA, None), 0).folds[0]
    scales = torch.rand(96) + 0.5
    folded = fold(tensors, step, scales)
    norm = tensors[f"{step.source}.weight"].double() / scales.double()
    assert torch.equal(folded[f"{step.source}.weight"], norm.bfloat16())
    for target in step.targets:
        wanted = tensors[f"{target}.weight"].double() * scales.double()
        assert torch.equal(folded[f"{target}.weight"], wanted.bfloat16())


def test_values_do_not_feed_o_proj_when_heads_are_shared():
    shared = fold_map(spec_from_config(GQA, None), 0)
    assert [step.source for step in shared.folds][-1] == f"{PREFIX}mlp.up_proj"
    assert list(shared.skipped) == [f"{PREFIX}self_attn.o_proj"]
    assert "6 query heads share 2 KV heads" in shared.skipped[f"{PREFIX}self_attn.o_proj"]
    own = fold_map(spec_from_config(MHA, None), 0)
    assert own.folds[-1].source == f"{PREFIX}self_attn.v_proj"
    assert not own.skipped


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_cannot_be_undone_are_refused(value, error_of):
    step = Fold(source="norm", targets=("a",))
    tensors = {"norm.weight": torch.ones(4), "a.weight": torch.ones(2, 4)}
    error = error_of(fold, tensors, step, torch.tensor([1.0, value, 1.0, 1.0]))
    assert error.code == "E-QUANT-SCALE"
    assert "1 of 4" in error.message


def test_a_result_outside_the_dtype_is_refused(error_of):
    step = Fold(source="norm", targets=("a",))
    tensors = {"norm.weight": torch.ones(2).half(), "a.weight": torch.full((2, 2), 100.0).half()}
    error = error_of(fold, tensors, step, torch.tensor([1.0, 1000.0]))
    assert error.code == "E-QUANT-SCALE"
    assert "a.weight" in error.message
