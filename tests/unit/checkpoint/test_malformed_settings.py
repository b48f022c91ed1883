"""Quantization settings of a wrong type or with unknown fields: named, never a traceback."""

from __future__ import annotations

import logging

import pytest

from isobit.shard.inspect import inspect_folder
from isobit.shard.model.spec import spec_from_config

from ...support import INT4, copy_model
from ..configs import config, pack_quantized
from ..inspect.inspection import codes_of, finding

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
BNB = {"quant_method": "bitsandbytes", "load_in_8bit": True}
PACKED = pack_quantized()
GROUP = PACKED["config_groups"]["group_0"]
UP = "model.layers.0.mlp.up_proj"


def groups(**changes):
    return {**PACKED, "config_groups": {"g": {**GROUP, **changes}}}


def spec_of(settings):
    return spec_from_config(config(quantization_config=settings), None)


LIST = "expected a list of strings that are not empty"
MAP = "expected a map (JSON object)"
BOOL = "expected true or false"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("gptq", f"config.json: quantization_config is 'gptq', {MAP}"),
        (["gptq"], f"config.json: quantization_config is ['gptq'], {MAP}"),
        (False, f"config.json: quantization_config is False, {MAP}"),
        ({"quant_method": ["gptq"]}, "quant_method is ['gptq'], expected a string"),
        ({**GPTQ, "checkpoint_format": ["gptq"]}, "checkpoint_format is ['gptq'], expected a str"),
        ({**GPTQ, "dynamic": [1]}, f"gptq: dynamic is [1], {MAP}"),
        ({**GPTQ, "dynamic": {"+:.*": 8}}, f"gptq: dynamic: +:.* is 8, {MAP}"),
        ({**GPTQ, "dynamic": {"-:layers(": {}}}, "gptq: dynamic: 'layers(' is not a regular"),
        ({**GPTQ, "dynamic": {"a{99999999999}": {}}}, "'a{99999999999}' is not a regular"),
        ({**GPTQ, "dynamic": {"up": {"bits": "8"}}}, "gptq: bits is '8', expected 4 or 8"),
        ({**GPTQ, "meta": "x"}, f"gptq: meta is 'x', {MAP}"),
        ({**GPTQ, "sym": "false"}, f"gptq: sym is 'false', {BOOL}"),
        ({**GPTQ, "desc_act": 1}, f"gptq: desc_act is 1, {BOOL}"),
        ({**GPTQ, "lm_head": "no"}, f"gptq: lm_head is 'no', {BOOL}"),
        ({**GPTQ, "group_size": "128"}, "gptq: group_size is '128', expected a positive integer"),
        ({**GPTQ, "rotation": "hadamard"}, "gptq: rotation 'hadamard' is not supported"),
        ({**GPTQ, "meta": {"rotation": "random"}}, "gptq: rotation 'random' is not supported"),
        ({**AWQ, "version": 1}, "awq: version is 1, expected a string"),
        ({**AWQ, "zero_point": "yes"}, f"awq: zero_point is 'yes', {BOOL}"),
        (
            {**AWQ, "modules_to_not_convert": "lm_head"},
            f"awq: modules_to_not_convert is 'lm_head', {LIST}",
        ),
        ({**AWQ, "modules_to_not_convert": [""]}, f"modules_to_not_convert is [''], {LIST}"),
        (
            {**BNB, "llm_int8_skip_modules": "lm_head"},
            f"bitsandbytes: llm_int8_skip_modules is 'lm_head', {LIST}",
        ),
        ({**BNB, "load_in_8bit": "true"}, f"bitsandbytes: load_in_8bit is 'true', {BOOL}"),
        (
            {**BNB, "load_in_8bit": False, "load_in_4bit": True, "bnb_4bit_quant_type": 4},
            "bnb_4bit_quant_type is 4",
        ),
        ({**PACKED, "config_groups": [GROUP]}, "config_groups is [{"),
        ({**PACKED, "config_groups": {"g": None}}, "g: targets is [], expected at least one name"),
        ({**PACKED, "config_groups": {"g": ["Linear"]}}, f"g is ['Linear'], {MAP}"),
        ({**PACKED, "ignore": "lm_head"}, f"ignore is 'lm_head', {LIST}"),
        ({**PACKED, "ignore": ["re:*"]}, "ignore: '*' is not a regular expression"),
        (groups(targets="Linear"), f"g: targets is 'Linear', {LIST}"),
        (groups(targets=[1]), f"g: targets is [1], {LIST}"),
        (groups(targets=["re:(up"]), "g: targets: '(up' is not a regular expression"),
        (groups(weights="int4"), f"g: weights is 'int4', {MAP}"),
        (groups(input_activations=[8]), f"g: input_activations is [8], {MAP}"),
        (groups(format=["pack-quantized"]), "g: format is ['pack-quantized'], expected a string"),
        (pack_quantized(symmetric="yes"), f"group_0: weights: symmetric is 'yes', {BOOL}"),
        (pack_quantized(num_bits=4.0), "num_bits is 4.0, expected 2 or 3"),
        ({**PACKED, "sparsity_config": "dense"}, f"sparsity_config is 'dense', {MAP}"),
        (
            {**PACKED, "sparsity_config": {"format": "sparse-bitmask"}},
            "sparsity_config: format 'sparse-bitmask' is not read, only 'dense'",
        ),
        ({**PACKED, "sparsity_config": {"ignore": []}}, "sparsity_config: format None is not"),
    ],
    ids=str,
)
def test_what_is_malformed_is_refused_by_name(settings, words, error_of):
    error = error_of(spec_of, settings)
    assert error.code == "E-QUANT-SCHEME"
    assert words in error.message


def test_a_malformed_group_does_not_hide_another(error_of):
    both = {"a": {**GROUP, "targets": "Linear"}, "b": {**GROUP, "format": "marlin-24"}}
    error = error_of(spec_of, {**PACKED, "config_groups": both})
    assert "a: targets is 'Linear'" in error.message
    assert "b: format 'marlin-24' is not read" in error.message


@pytest.mark.parametrize(
    "settings",
    [
        {**PACKED, "sparsity_config": {"format": "dense", "global_sparsity": 0.02}},
        {**PACKED, "sparsity_config": {}, "ignore": None},
        {**GPTQ, "dynamic": None, "meta": None, "rotation": None, "lm_head": None},
        {**AWQ, "modules_to_not_convert": None},
        {**BNB, "llm_int8_skip_modules": []},
    ],
    ids=str,
)
def test_absent_and_dense_are_genuine(settings):
    spec = spec_of(settings)
    assert spec.quantization is not None
    assert spec.quantization.scheme(UP) is not None


def test_null_means_a_dense_model_as_in_transformers():
    assert spec_of(None).quantization is None


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (groups(strange=1), "config_groups.g.strange"),
        (pack_quantized(strange=1), "config_groups.group_0.weights.strange"),
        (
            {
                **PACKED,
                "format": "int-quantized",
                "config_groups": {
                    "g": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                        "input_activations": {
                            "num_bits": 8,
                            "type": "int",
                            "strategy": "token",
                            "dynamic": True,
                            "strange": 1,
                        },
                    }
                },
            },
            "config_groups.g.input_activations.strange",
        ),
        ({**GPTQ, "dynamic": {"+:.*up": {"bits": 8, "strange": 1}}}, "dynamic.+:.*up.strange"),
    ],
    ids=["group", "weights", "inputs", "dynamic"],
)
def test_unknown_fields_are_named_at_any_depth(settings, field, caplog):
    with caplog.at_level(logging.WARNING):
        spec_of(settings)
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        f"field {field!r} = 1 is not known and not used"
    ]


@pytest.mark.parametrize("bits", [4, 8])
def test_known_overrides_of_dynamic_are_silent(bits, caplog):
    overrides = {"bits": bits, "group_size": 64, "sym": True, "desc_act": False, "mse": 2.4}
    with caplog.at_level(logging.WARNING):
        spec = spec_of({**GPTQ, "dynamic": {r"+:.*\.up_proj": overrides}})
    assert caplog.records == []
    assert spec.quantization is not None
    scheme = spec.quantization.scheme(UP)
    assert scheme is not None
    assert (scheme.bits, scheme.group_size) == (bits, 64)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("gptq", "quantization_config is 'gptq'"),
        ({"quant_method": ["gptq"]}, "quant_method is ['gptq']"),
        ({**PACKED, "ignore": "lm_head"}, "ignore is 'lm_head'"),
        ({**GPTQ, "dynamic": {"-:layers(": {}}}, "'layers(' is not a regular expression"),
    ],
    ids=str,
)
def test_inspection_reports_them(settings, words, tmp_path):
    report = inspect_folder(copy_model(INT4, tmp_path / "m", quantization_config=settings))
    assert report.verdict == "damaged"
    assert codes_of(report, "error") == {"E-QUANT-SCHEME"}
    assert words in finding(report, "E-QUANT-SCHEME").what
