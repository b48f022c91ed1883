"""bitsandbytes nf4: the tensors beside a weight are required and checked before they are used."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.checkpoint.safetensors_file import SliceReader
from isobit.shard.formats.bitsandbytes import read_nf4
from isobit.shard.inspect import inspect_folder
from isobit.shard.load.validate import check_checkpoint
from isobit.shard.model.spec import read_spec

from ...support import GOLDEN, copy_model, save_tensors
from ..inspect.inspection import codes_of

UP = "model.layers.0.mlp.up_proj"
STATE = f"{UP}.weight.quant_state.bitsandbytes__nf4"
K = 64


def changed(case, tmp_path, change):
    """A copy of a golden checkpoint after `change(tensors)`."""
    folder = copy_model(GOLDEN / case, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_tensors(folder, tensors)
    return folder


def read(folder):
    checkpoint = open_checkpoint(folder)
    n = 2 * checkpoint.entries[f"{UP}.weight"].shape[0] // K
    with SliceReader() as reader:
        return read_nf4(checkpoint, reader, UP, K, slice(0, n), slice(0, K))


def check(folder):
    check_checkpoint(open_checkpoint(folder), read_spec(folder))


def state_as(content):
    """Replace the state by bytes, or change some of its fields."""

    def change(tensors):
        new = content
        if isinstance(content, dict):
            fields = {**json.loads(bytes(tensors[STATE].tolist())), **content}
            new = json.dumps(fields).encode()
        tensors[STATE] = torch.tensor(list(new), dtype=torch.uint8)

    return change


@pytest.mark.parametrize("case", ["bnb-nf4", "bnb-nf4-nested", "bnb-nf4-straddling"])
def test_genuine_checkpoints_pass(case):
    check(GOLDEN / case)


@pytest.mark.parametrize("part", ["absmax", "quant_map", "quant_state.bitsandbytes__nf4"])
def test_a_companion_that_is_absent(part, tmp_path, error_of):
    name = f"{UP}.weight.{part}"
    folder = changed("bnb-nf4", tmp_path, lambda tensors: tensors.pop(name))
    for function in (check, read):
        error = error_of(function, folder)
        assert error.code == "E-CKPT-TENSOR"
        assert name in error.message
    assert codes_of(inspect_folder(folder), "error") == {"E-CKPT-TENSOR"}


@pytest.mark.parametrize("part", ["nested_absmax", "nested_quant_map"])
def test_double_quantization_needs_its_own(part, tmp_path, error_of):
    name = f"{UP}.weight.{part}"
    error = error_of(read, changed("bnb-nf4-nested", tmp_path, lambda t: t.pop(name)))
    assert error.code == "E-CKPT-TENSOR"
    assert name in error.message


@pytest.mark.parametrize(
    ("case", "part", "expected"),
    [
        ("bnb-nf4", "absmax", 192),
        ("bnb-nf4", "quant_map", 16),
        ("bnb-nf4-nested", "absmax", 320),
        ("bnb-nf4-nested", "quant_map", 16),
        ("bnb-nf4-nested", "nested_absmax", 2),
        ("bnb-nf4-nested", "nested_quant_map", 256),
    ],
)
@pytest.mark.parametrize("longer", [False, True])
def test_lengths_follow_from_the_weight(case, part, expected, longer, tmp_path, error_of):
    name = f"{UP}.weight.{part}"

    def change(tensors):
        old = tensors[name]
        tensors[name] = torch.cat((old, old[:1])) if longer else old[:-1].clone()

    error = error_of(read, changed(case, tmp_path, change))
    assert error.code == "E-CKPT-TENSOR"
    assert f"{name}: shape [{expected + (1 if longer else -1)}], expected [{expected}]" in (
        error.message
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[64]", "[64], expected a map"),
        ({"quant_type": "fp4"}, "quant_type is 'fp4', expected nf4"),
        ({"blocksize": 0}, "blocksize is 0, expected a positive integer"),
        ({"blocksize": "64"}, "blocksize is '64', expected a positive integer"),
        ({"blocksize": True}, "blocksize is True, expected a positive integer"),
        ({"blocksize": 1 << 80}, "expected a positive integer"),
        ({"shape": [64, 320]}, "shape is [64, 320], expected [320, 64]"),
        ({"nested_blocksize": None}, "nested_blocksize is None, expected a positive integer"),
        ({"nested_blocksize": -1}, "nested_blocksize is -1, expected a positive integer"),
        ({"nested_offset": "0"}, "nested_offset is '0', expected a number"),
        ({"nested_offset": float("nan")}, "nested_offset is nan, expected a number"),
        ({"nested_offset": 10**400}, "expected a number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_state_that_cannot_be_read(content, words, tmp_path, error_of):
    error = error_of(read, changed("bnb-nf4-nested", tmp_path, state_as(content)))
    assert error.code == "E-QUANT-SCHEME"
    assert error.message.startswith(STATE)
    assert words in error.message


@pytest.mark.parametrize(
    ("case", "words"),
    [("bnb-nf4", "plain scales (floats)"), ("bnb-nf4-nested", "double quantization (uint8)")],
)
def test_the_state_and_the_scales_disagree(case, words, tmp_path, error_of):
    name = f"{UP}.weight.absmax"
    dtype = torch.uint8 if case == "bnb-nf4" else torch.float32

    def change(tensors):
        tensors[name] = tensors[name].to(dtype)

    error = error_of(read, changed(case, tmp_path, change))
    assert error.code == "E-QUANT-SCHEME"
    assert error.message.startswith(name)
    assert words in error.message
