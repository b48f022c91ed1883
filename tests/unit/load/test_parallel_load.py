"""Loading on several threads: the same bytes, and every error still told at once and in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isobit.errors import InputError
from isobit.kernels import ops
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.load.load import RankWeights, load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import DENSE, GOLDEN, INT4, copy_model, save_tensors


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = ops.threads()
    yield
    ops.set_threads(before)


def load(folder: Path, threads: int, degree: int = 2, rank: int = 1) -> RankWeights:
    ops.set_threads(threads)
    spec = read_spec(folder)
    plan = make_plan(spec, PlanSettings(degree=degree))
    return load_rank(open_checkpoint(folder), spec, plan, rank, spec.torch_dtype)


def tensors(weights: RankWeights) -> list[torch.Tensor]:
    held = [weights.head, *(p for layer in weights.layers for p in layer.products.values())]
    found = [tensor for product in held for tensor in product.tensors]
    for layer in weights.layers:
        found += [layer.input_norm, layer.post_attention_norm]
        found += [bias for bias in layer.biases.values() if bias is not None]
    return [*found, weights.final_norm, *([] if weights.embedding is None else [weights.embedding])]


@pytest.mark.parametrize(
    "folder", [DENSE, INT4, GOLDEN / "gptq-act-order", GOLDEN / "awq"], ids=lambda path: path.name
)
def test_threads_do_not_change_a_byte(folder):
    one, many = load(folder, 1), load(folder, 5)
    assert one.bytes_read == many.bytes_read
    for ours, theirs in zip(tensors(one), tensors(many), strict=True):
        assert torch.equal(ours.flatten().view(torch.uint8), theirs.flatten().view(torch.uint8))


def test_what_is_wrong_in_several_layers_is_told_together_and_in_order(tmp_path):
    folder = copy_model(INT4, tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    names = [
        "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.2.self_attn.o_proj.weight_scale",
        "model.layers.4.input_layernorm.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    ]
    for name in names:
        whole[name].view(-1)[0] = torch.nan
    save_tensors(folder, whole)
    with pytest.raises(InputError) as error:
        load(folder, 4, degree=1, rank=0)
    assert error.value.code == "E-CKPT-NAN"
    lines = error.value.message.splitlines()
    assert "in 5 tensors" in lines[0]
    wanted = [name.removesuffix(".weight_scale").removesuffix(".weight") for name in names]
    for line, name in zip(lines[1:], wanted, strict=False):
        assert name in line


def test_zero_points_that_contradict_the_config_are_all_named(tmp_path):
    folder = copy_model(GOLDEN / "gptq-v1", tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    names = [name for name in whole if name.endswith(".qzeros")]
    assert len(names) > 1
    for name in names:
        whole[name][:] = 0x33333333
    save_tensors(folder, whole)
    with pytest.raises(InputError) as error:
        load(folder, 3)
    assert error.value.code == "E-QUANT-ZEROS"
    assert all(error.value.message.count(f"{name}:") == 1 for name in names)


def test_a_file_that_ends_early_stops_every_thread(tmp_path):
    folder = copy_model(INT4, tmp_path / "model")
    spec, checkpoint = read_spec(folder), open_checkpoint(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    ops.set_threads(4)
    with pytest.raises(InputError) as error:
        load_rank(checkpoint, spec, make_plan(spec, PlanSettings()), 0, torch.bfloat16)
    assert error.value.code == "E-CKPT-TRUNCATED"
