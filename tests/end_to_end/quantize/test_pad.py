"""A padded checkpoint: the same bits in isobit, loadable elsewhere, exact zeros in the padding."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from isobit.errors import InputError
from isobit.shard.formats.codes import WholeWeight
from isobit.shard.formats.scheme import CHANNEL, WeightScheme
from isobit.shard.pad import PadSettings, pad_folder, padded_weight

from ...support import DENSE, GOLDEN, INT4, all_logits, copy_model, save_tensors

CASES = [
    "gptq-v1",
    "gptq-v1-asymmetric-nibbles",
    "gptq-v1-asymmetric-words",
    "gptq-act-order",
    "gptq-one-group",
    "awq",
    "ct-int4-asymmetric",
    "ct-int8-channel",
    "ct-w8a8-dynamic",
    "ct-w8a8-static",
]
MODELS = {"dense": DENSE, "int4": INT4, **{case: GOLDEN / case for case in CASES}}
IDS = [5, 77, 3, 120, 9, 64, 31, 8]


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_no_bit(name, tmp_path):
    model = MODELS[name]
    report = pad_folder(model, tmp_path / "out", PadSettings())
    assert report.intermediate[1] > report.intermediate[0]
    dtype = json.loads((model / "config.json").read_text())["dtype"]
    for degree in (1, 3):
        before = all_logits(model, IDS, dtype, degree=degree)
        assert torch.equal(all_logits(tmp_path / "out", IDS, dtype, degree=degree), before)


@pytest.mark.parametrize("name", ["dense", "int4"])
@torch.no_grad()
def test_transformers_loads_a_padded_checkpoint(name, tmp_path):
    pad_folder(MODELS[name], tmp_path / "out", PadSettings())

    def logits(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert model.config.intermediate_size == (512 if folder == tmp_path / "out" else 416)
        return model(torch.tensor([IDS])).logits

    # Zeros take part in transformers' sums, whose order depends on the width.
    assert torch.allclose(logits(tmp_path / "out"), logits(MODELS[name]), rtol=0, atol=2e-4)


def test_padded_tensors_are_exactly_neutral(tmp_path):
    pad_folder(INT4, tmp_path / "out", PadSettings())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    mlp = "model.layers.0.mlp."
    assert (tensors[mlp + "up_proj.weight_packed"][416:] == -0x77777778).all()
    assert (tensors[mlp + "up_proj.weight_scale"][416:] == 1).all()
    assert (tensors[mlp + "down_proj.weight_packed"][:, 52:] == -0x77777778).all()
    assert (tensors[mlp + "down_proj.weight_scale"][:, 13:] == 1).all()
    assert tensors[mlp + "down_proj.weight_shape"].tolist() == [288, 512]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("size", "old_groups", "groups"), [(16, 3, 4), (8, 5, 8), (CHANNEL, 1, 1)])
def test_new_columns_of_a_group_with_a_zero_point(size, old_groups, groups, act_order):
    """40 columns are two groups and a half of 16: new ones belong to the third as well."""
    scheme = WeightScheme(format="gptq", bits=4, group_size=size, symmetric=False)
    old_index = torch.arange(40) // scheme.group_width(40)
    weight = WholeWeight(
        codes=torch.randint(16, (6, 40), dtype=torch.uint8),
        scales=torch.rand(6, old_groups) + 0.5,
        zeros=torch.randint(8, (6, old_groups), dtype=torch.uint8),
        g_idx=old_index.flip(0).int() if act_order else None,
    )
    grown = padded_weight(weight, scheme, 8, 64)
    assert grown.scales.shape == (8, groups)
    index = torch.arange(64) // scheme.group_width(64) if grown.g_idx is None else grown.g_idx
    values = (grown.codes.float() - grown.zeros[:, index]) * grown.scales[:, index]
    assert (values[:, 40:] == 0).all()
    assert (values[6:] == 0).all()
    old = old_index if weight.g_idx is None else weight.g_idx
    before = (weight.codes.float() - weight.zeros[:, old]) * weight.scales[:, old]
    assert torch.equal(values[:6, :40], before)


def test_padding_after_a_short_group_changes_no_bit(tmp_path):
    """down_proj has six groups of 16 and one of 8, which is filled up to 16."""
    source = GOLDEN / "gptq-v2-asymmetric"
    model = copy_model(source, tmp_path / "short", intermediate_size=104)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if ".mlp." in name]:
        part, tensor = name.rsplit(".", 1)[1], tensors[name]
        if "down_proj" in name:
            keep = {"qweight": 104 // 8, "g_idx": 104}.get(part)
            tensors[name] = tensor[:keep].contiguous()
        elif part != "g_idx":
            tensors[name] = tensor[:, : 13 if part == "qzeros" else 104].contiguous()
    save_tensors(model, tensors)
    pad_folder(model, tmp_path / "out", PadSettings())
    for degree in (1, 3):
        before = all_logits(model, IDS, "bfloat16", degree=degree)
        assert torch.equal(all_logits(tmp_path / "out", IDS, "bfloat16", degree=degree), before)


def test_metadata_says_what_was_done(tmp_path):
    pad_folder(DENSE, tmp_path / "out", PadSettings(vocab=True))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        note = file.metadata()["isobit"]
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [2048, 288]
    assert note == "padded intermediate_size 416 -> 512, vocab_size 2000 -> 2048"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["intermediate_size"], config["vocab_size"]) == (512, 2048)


def test_padded_vocabulary_leaves_the_other_logits_alone(tmp_path):
    pad_folder(DENSE, tmp_path / "out", PadSettings(vocab=True))
    padded = all_logits(tmp_path / "out", IDS, "bfloat16")
    assert torch.equal(padded[:, :2000], all_logits(DENSE, IDS, "bfloat16"))


@pytest.mark.parametrize("size", [400, 450])
def test_a_size_that_cannot_be(size, tmp_path):
    with pytest.raises(InputError) as error:
        pad_folder(INT4, tmp_path / "out", PadSettings(intermediate_size=size))
    assert error.value.code == "E-PAD-SIZE"
    assert not list(tmp_path.iterdir())


def test_bitsandbytes_is_refused(tmp_path):
    with pytest.raises(InputError) as error:
        pad_folder(GOLDEN / "bnb-int8", tmp_path / "out", PadSettings())
    assert error.value.code == "E-PAD-FORMAT"
    assert not list(tmp_path.iterdir())
