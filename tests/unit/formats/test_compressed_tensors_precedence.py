"""Which scheme compressed-tensors gives each module: asked of the package itself."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

from isobit.errors import NotSupportedError
from isobit.shard.formats.compressed_tensors_config import quantization
from isobit.shard.formats.scheme import CHANNEL, WeightScheme

CASES, CASES_EACH = 500, 50
ENDS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
PATTERNS = (
    "re:.*", "re:.*_proj$", "re:.*down_proj", "re:.*down_proj$", "re:model", "re:lm_head",
    "re:.*self_attn.*", "re:.*mlp", "re:.*\\.(q|k|v)_proj", "re:.*layers\\.1\\..*", "re:layers",
    "re:.*layers.[01].mlp.(gate|up)_proj", "re:^model\\.layers\\.0\\.mlp\\.up_proj$", "re:o_proj",
    "re:model.layers.0", "re:model.layers.1.self_attn", "re:.*head", "re:.*k_proj|.*v_proj",
    "re:(?i).*Q_PROJ", "re:.*layers\\.(0|2)\\.", "re:z*", "re:.+\\d.+_proj",
)  # fmt: skip
CLASSES = ("Linear", "Linear", "Linear", "Module", "Embedding", "RMSNorm", "LlamaMLP")
PARTS = ("o_proj", "down_proj", "mlp", "layers.0.mlp.up_proj", "self_attn", "head", "model")


def model(layers: int) -> torch.nn.Module:
    """The module tree that our families share, without numbers."""

    def block() -> torch.nn.Module:
        tree = torch.nn.Module()
        for end in ENDS:
            part, name = end.split(".")
            if not hasattr(tree, part):
                tree.add_module(part, torch.nn.Module())
            getattr(tree, part).add_module(name, torch.nn.Linear(128, 128, bias=False))
        tree.add_module("input_layernorm", torch.nn.RMSNorm(128))
        return tree

    with torch.device("meta"):
        inner = torch.nn.Module()
        inner.add_module("embed_tokens", torch.nn.Embedding(32, 128))
        inner.add_module("layers", torch.nn.ModuleList(block() for _ in range(layers)))
        whole = torch.nn.Module()
        whole.add_module("model", inner)
        whole.add_module("lm_head", torch.nn.Linear(128, 32, bias=False))
    return whole


def group(rng: random.Random, targets: list[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {"num_bits": rng.choice([4, 8]), "symmetric": rng.random() < 0.7}
    if rng.random() < 0.3:
        weights["strategy"] = "channel"
    else:
        weights |= {"strategy": "group", "group_size": rng.choice([16, 32, 64, 128])}
    return {"targets": targets, "weights": weights}


def some_targets(rng: random.Random, names: list[str]) -> list[str]:
    """One to four targets of all kinds; none twice."""
    pools = (PATTERNS, CLASSES, names, PARTS)
    kinds = rng.choices(pools, weights=(5, 2, 3, 1), k=rng.randint(1, 4))
    return list(dict.fromkeys(rng.choice(kind) for kind in kinds))


def settings(rng: random.Random, names: list[str]) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for number in range(rng.randint(1, 4)):
        targets = some_targets(rng, names)
        if rng.random() < 0.1:
            groups[rng.choice(["W4A16", "w8a16", "W4A16_ASYM", "UNQUANTIZED"])] = targets
        else:
            groups[f"group_{number}"] = group(rng, targets)
    ignored = some_targets(rng, names) if rng.random() < 0.5 else []
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": rng.choice([["lm_head"], []]) + ignored,
    }


def oracle(found: dict[str, Any], layers: int) -> dict[str, WeightScheme | None]:
    tree = model(layers)
    apply_quantization_config(tree, QuantizationConfig(**found), show_progress=False)
    schemes: dict[str, WeightScheme | None] = {}
    for name, module in tree.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            continue
        weights = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        schemes[name] = weights and WeightScheme(
            format="pack-quantized",
            bits=weights.num_bits,
            group_size=weights.group_size or CHANNEL,
            symmetric=weights.symmetric,
        )
    return schemes


@pytest.mark.parametrize("first", range(0, CASES, CASES_EACH))
def test_random_configs_give_each_module_the_scheme_of_compressed_tensors(first):
    logging.getLogger("compressed_tensors").setLevel(logging.ERROR)
    for seed in range(first, first + CASES_EACH):
        rng = random.Random(seed)
        layers = rng.randint(1, 3)
        tree = model(layers)
        names = [n for n, m in tree.named_modules() if isinstance(m, torch.nn.Linear)]
        found = settings(rng, names)
        expected = oracle(found, layers)
        if expected["model.embed_tokens"] is not None:
            with pytest.raises(NotSupportedError, match="quantized embedding"):
                quantization(found)
            continue
        spec = quantization(found)
        assert {name: spec.scheme(name) for name in expected} == expected, (seed, found)


def test_an_exact_name_beats_a_pattern_beats_a_class():
    """The order of groups says nothing, and a bare name is no end of a name."""
    pack = {"num_bits": 4, "strategy": "group"}
    found = {
        "format": "pack-quantized",
        "config_groups": {
            "a": {"targets": ["Linear"], "weights": {**pack, "group_size": 16}},
            "b": {
                "targets": ["re:.*down_proj"],
                "weights": {**pack, "group_size": 32, "symmetric": False},
            },
            "c": {
                "targets": ["model.layers.1.mlp.down_proj", "up_proj"],
                "weights": {**pack, "group_size": 64},
            },
        },
        "ignore": ["o_proj", "lm_head"],
    }
    spec = quantization(found)
    sizes = {
        end: getattr(spec.scheme(f"model.layers.{end}"), "group_size", None)
        for end in ("0.mlp.down_proj", "1.mlp.down_proj", "0.mlp.up_proj", "0.self_attn.o_proj")
    }
    assert sizes == {
        "0.mlp.down_proj": 32,
        "1.mlp.down_proj": 64,
        "0.mlp.up_proj": 16,
        "0.self_attn.o_proj": 16,
    }
    assert spec.scheme("lm_head") is None


@pytest.mark.parametrize("name", ["NVFP4", "FP8_DYNAMIC", "MXFP4", "W4AFP8", "W4A8"])
def test_a_preset_that_is_not_read_is_named(name, error_of):
    error = error_of(
        quantization, {"format": "pack-quantized", "config_groups": {name: ["Linear"]}}
    )
    assert isinstance(error, NotSupportedError)
    assert f"compressed-tensors {name} is not supported" in error.message
