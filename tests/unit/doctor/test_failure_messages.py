"""The exact words of the errors that people meet most, and what is refused by name."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from isobit.errors import InputError
from isobit.runtime.engine.engine import prepare
from isobit.runtime.settings.engine import EngineSettings
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.contents.expected_tensors import stored_intermediate_size
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec, spec_from_config
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import GOLDEN, INT4, copy_model
from ..configs import config, pack_quantized


def error_of(function, *arguments) -> InputError:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return caught.value


def load(model, degree: int = 1) -> None:
    spec, checkpoint = read_spec(model), open_checkpoint(model)
    plan = make_plan(spec, PlanSettings(degree=degree), stored_intermediate_size(checkpoint))
    for rank in range(degree):
        load_rank(checkpoint, spec, plan, rank, torch.float32)


def relabelled(case: str, label: str, tmp_path):
    """A copy of a golden GPTQ checkpoint under another checkpoint_format."""
    settings = json.loads((GOLDEN / case / "config.json").read_text())["quantization_config"]
    settings = {**settings, "checkpoint_format": label, "format": label}
    return copy_model(GOLDEN / case, tmp_path / "model", quantization_config=settings)


def test_v2_zero_points_under_a_v1_label(tmp_path):
    """F3: read by the label, every weight would be off by one step ("!!!!")."""
    model = relabelled("gptq-v2", "gptq", tmp_path)
    error = error_of(load, model)
    assert error.code == "E-QUANT-LABEL"
    lines = error.message.splitlines()
    assert lines[0] == (
        "model.layers.0.self_attn.q_proj.qzeros: stored zero points are 8, as in a gptq_v2 file, "
        'but the config says gptq. Set checkpoint_format to "gptq_v2" in config.json (and '
        "quantize_config.json)"
    )
    assert len(lines) == 7 * read_spec(model).layers, "every bad weight is listed"


def test_v1_zero_points_under_a_v2_label(tmp_path):
    error = error_of(load, relabelled("gptq-v1", "gptq_v2", tmp_path))
    assert error.code == "E-QUANT-LABEL"
    assert "stored zero points are 7, as in a gptq file" in error.message


def test_degree_that_is_too_large():
    """F6: arithmetic on the config, before anything starts."""
    error = error_of(prepare, INT4, EngineSettings(plan=PlanSettings(degree=9)))
    assert (error.code, error.message) == (
        "E-PLAN-DEGREE",
        "tensor-parallel size 9 is not between 1 and 8, the number of atoms. Choose a smaller "
        "size, or --atoms 16",
    )


def test_intermediate_size_that_no_group_divides(tmp_path):
    """F7: 14436 typed for 14336."""
    model = copy_model(INT4, tmp_path / "model", intermediate_size=14436)
    error = error_of(prepare, model, EngineSettings())
    assert (error.code, error.message) == (
        "E-PLAN-GROUP",
        "layers.*.mlp.down_proj: intermediate_size 14436 is not a multiple of group_size 32 "
        "(451.12 groups). The tensors say 416. Did you mean 14432 (= 451 x 32)?",
    )


def test_intermediate_size_edited_to_another_legal_one(tmp_path):
    """F7: channels would be dropped silently."""
    model = copy_model(INT4, tmp_path / "model", intermediate_size=384)
    error = error_of(prepare, model, EngineSettings())
    assert error.code == "E-CONFIG-SHAPE"
    assert error.message == (
        f"{model}: config.json: intermediate_size: config.json says 384, the tensors say 416: "
        "30 contradictions for this reason\nSet intermediate_size to 416 in config.json. To make a "
        "model divisible use isobit pad, which pads the tensors too"
    )


def test_members_of_a_fused_product_that_differ_run_apart():
    """F8: q, k, v with three g_idx of their own; the logits are checked in test_golden."""
    load(GOLDEN / "gptq-act-order-apart", degree=2)


def test_an_unknown_field_is_named_and_an_unknown_method_refused(caplog):
    """F16."""
    settings = {**pack_quantized(), "block_scales": "yes"}
    with caplog.at_level(logging.WARNING):
        spec_from_config(config(quantization_config=settings), None)
    assert (
        "quantization_config (compressed-tensors): field 'block_scales' = 'yes' is not known and "
        "not used" in caplog.text
    )
    error = error_of(spec_from_config, config(quantization_config={"quant_method": "hqq"}), None)
    assert (error.code, error.message) == (
        "E-QUANT-METHOD",
        "quantization method 'hqq' is not supported. Read: gptq, awq, compressed-tensors, "
        "bitsandbytes, auto-round. Take the original model and quantize it again, for example with "
        "isobit quantize, or take a checkpoint in one of these formats",
    )


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
W4 = pack_quantized()["config_groups"]["group_0"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**GPTQ, "checkpoint_format": "gptq_p"}, "checkpoint_format 'gptq_p' is another layout"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is another layout"),
        ({**GPTQ, "is_marlin_format": True}, "checkpoint_format 'marlin' is another layout"),
        ({**GPTQ, "bits": 3}, "gptq: 3 bits are not read, only 4 and 8"),
        ({**GPTQ, "bits": 2}, "gptq: 2 bits are not read, only 4 and 8"),
        ({**GPTQ, "group_size": 0}, "gptq: group_size is 0"),
        ({**AWQ, "version": "gemv"}, "awq: version 'gemv' is another layout"),
        ({**AWQ, "version": "gemv_fast"}, "awq: version 'gemv_fast' is another layout"),
        (
            {**BNB, "bnb_4bit_quant_type": "fp4"},
            "bitsandbytes: fp4 stored as uint8 is not read. Read: nf4",
        ),
        ({**pack_quantized(), "kv_cache_scheme": {"num_bits": 8}}, "a quantized KV cache"),
        ({**pack_quantized(), "format": "marlin-24"}, "format 'marlin-24' is not read"),
        (pack_quantized(bits=3), "3 bits of type 'int', expected int and 4 or 8"),
        (pack_quantized(strategy="tensor"), "weight strategy 'tensor'"),
        (
            {
                **pack_quantized(),
                "config_groups": {"a": {**W4, "input_activations": {"num_bits": 8}}},
            },
            "pack-quantized weights with quantized activations",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(settings, words):
    error = error_of(spec_from_config, config(quantization_config=settings), None)
    assert error.code == "E-QUANT-SCHEME"
    assert words in error.message


def test_problems_of_all_config_groups_come_together():
    groups = {
        name: {**W4, "weights": {**W4["weights"], "num_bits": bits}}
        for name, bits in (("group_0", 2), ("group_1", 3))
    }
    settings = {**pack_quantized(), "config_groups": groups}
    error = error_of(spec_from_config, config(quantization_config=settings), None)
    assert "group_0: 2 bits" in error.message
    assert "group_1: 3 bits" in error.message
