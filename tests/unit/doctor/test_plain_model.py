"""A model in plain torch gives the logits of transformers, and its halves what each costs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from isobit.runtime.doctor.damage import Sample, measure_damage, plain_logits
from isobit.runtime.doctor.plain_model import PlainModel

from ...support import DENSE, GOLDEN, INT4, save_random_model
from ..configs import config

IDS = torch.randint(0, 200, (72,), generator=torch.Generator().manual_seed(5)).tolist()
# Only the order of additions differs, and activations of 8 bits are rounded by atom, not by token.
LOGITS_BOUND, WIDER_BOUNDS = 2e-5, {"ct-w8a8-dynamic": 0.03}
FAMILIES = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 16},
    "qwen2": {},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    settings = AutoConfig.for_model(**config(model_type=family, **FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    save_random_model(tmp_path, model)
    ours = plain_logits(PlainModel(tmp_path), [Sample(ids=IDS, begin=1)])[0]
    with torch.no_grad():
        wanted = model(torch.tensor([IDS])).logits[0, :-1]
    # Both round in float32, in orders of their own.
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case", ["awq", "bnb-nf4", "ct-w8a8-dynamic", "ct-w8a8-static", "gptq-act-order"]
)
def test_quantized_weights_give_the_logits_of_the_packages_that_made_them(case):
    expected = load_file(GOLDEN / case / "expected.safetensors")
    sample = Sample(ids=expected["ids"].tolist(), begin=1)
    ours = plain_logits(PlainModel(GOLDEN / case), [sample])[0]
    wanted = expected["logits"][:-1]
    assert (ours - wanted).abs().max() / wanted.abs().max() < WIDER_BOUNDS.get(case, LOGITS_BOUND)


def test_a_model_is_no_distance_from_itself():
    damage = measure_damage(PlainModel(DENSE), PlainModel(DENSE), [Sample(ids=IDS, begin=8)], False)
    assert damage.kl == 0
    assert damage.perplexity == damage.reference_perplexity
    assert {half.sqnr_db for half in damage.halves} == {None}


def test_the_divergences_of_halves_add_up_to_that_of_the_whole():
    samples = [Sample(ids=IDS, begin=8), Sample(ids=IDS[::-1], begin=30)]
    damage = measure_damage(PlainModel(INT4), PlainModel(DENSE), samples, True)
    costs = [half.kl for half in damage.halves]
    assert [half.name for half in damage.halves[:3]] == [
        "layers.0.self_attn",
        "layers.0.mlp",
        "layers.1.self_attn",
    ]
    # docs/quantization.md has sums within a fifth on text; these tokens are random.
    assert sum(costs) == pytest.approx(damage.kl, rel=0.5)
