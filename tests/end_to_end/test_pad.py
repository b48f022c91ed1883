"""A padded checkpoint: the same bits in isobit, loadable elsewhere, exact zeros in the padding."""

from __future__ import annotations

import json

import pytest
import torch
from isobit.kernels.errors import InputError
from isobit.shard.pad import PadSettings, pad_folder
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ..support import DENSE, INT4, ROOT, all_logits

GOLDEN = ROOT / "tests" / "golden"
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
