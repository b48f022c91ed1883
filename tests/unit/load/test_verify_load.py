"""Damage after loading: whatever a rank's kernels read is compared with the file and named."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.contents.expected_tensors import stored_intermediate_size
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, make_plan
from isobit.shard.verify.verify_load import (
    compare,
    file_fingerprints,
    padding_faults,
    rank_fingerprints,
)

from ...random_folder import save_random_folder
from ...support import DENSE, GOLDEN, INT4
from ..configs import config

CASES = [path.parent for path in sorted(GOLDEN.glob("*/expected.safetensors"))]
FIRST = "model.layers.0."


class Loaded:
    """A model folder loaded by every rank of a degree."""

    def __init__(self, folder, degree: int, layout: str = "pad") -> None:
        self.spec, self.checkpoint = read_spec(folder), open_checkpoint(folder)
        settings = PlanSettings(degree=degree, layout=layout)  # type: ignore[arg-type]
        self.plan = make_plan(self.spec, settings, stored_intermediate_size(self.checkpoint))
        self.ranks = [
            load_rank(self.checkpoint, self.spec, self.plan, rank, self.spec.torch_dtype)
            for rank in range(degree)
        ]

    def faults(self) -> list[str]:
        expected = file_fingerprints(self.checkpoint, self.spec, self.spec.torch_dtype)
        found = [
            rank_fingerprints(self.checkpoint, self.spec, self.plan, rank, weights)
            for rank, weights in enumerate(self.ranks)
        ]
        return [fault.module for fault in compare(expected, found)]

    def padding(self) -> dict[int, list[str]]:
        """The faults of each rank that has any."""
        faults = {
            rank: padding_faults(self.plan, rank, self.spec, weights)
            for rank, weights in enumerate(self.ranks)
        }
        return {rank: names for rank, names in faults.items() if names}

    def product(self, rank: int, name: str):
        return self.ranks[rank].layers[0].products[name]

    def replace(self, rank: int, name: str, **changed) -> None:
        products = self.ranks[rank].layers[0].products
        products[name] = dataclasses.replace(products[name], **changed)


@pytest.mark.parametrize("layout", ["pad", "ragged"])
@pytest.mark.parametrize("folder", [*CASES, DENSE, INT4], ids=lambda folder: folder.name)
def test_a_good_load_has_no_faults(folder, layout):
    for degree in (1, 2, 3, 8):
        loaded = Loaded(folder, degree, layout)
        assert loaded.faults() == []
        assert loaded.padding() == {}


@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("table", ["data", "scales"])
def test_every_copy_of_a_kv_head(name, table):
    loaded = Loaded(GOLDEN / "gptq-act-order", 8)
    holders = [rank for rank in range(8) if 1 in loaded.plan.kv_heads(rank)]
    assert len(holders) > 1
    for rank in holders:
        bits = getattr(loaded.product(rank, name), table).view(torch.uint8).view(-1)
        bits[0] ^= 1
        head = loaded.plan.kv_heads(rank).start
        assert loaded.faults() == [f"{FIRST}self_attn.{name}_proj KV head {head} on rank {rank}"]
        bits[0] ^= 1
    assert loaded.faults() == []


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_untied_embedding(rank):
    loaded = Loaded(GOLDEN / "gptq-v1", 8)  # 64, 64 and 2 of the rows
    loaded.ranks[rank].embedding[-1, -1] += 1
    assert loaded.faults() == ["model.embed_tokens"]


def test_two_swapped_rows_of_the_embedding():
    loaded = Loaded(GOLDEN / "gptq-v1", 2)
    table = loaded.ranks[0].embedding
    table[[3, 4]] = table[[4, 3]]
    assert loaded.faults() == ["model.embed_tokens"]


@pytest.mark.parametrize("name", ["input_norm", "post_attention_norm"])
@pytest.mark.parametrize("rank", [0, 2])
def test_norms_on_every_rank(name, rank):
    loaded = Loaded(GOLDEN / "gptq-v1", 3)
    getattr(loaded.ranks[rank].layers[0], name)[5] *= 1.01
    stored = {"input_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    assert loaded.faults() == [f"{FIRST}{stored[name]}.weight on rank {rank}"]


def test_the_final_norm():
    loaded = Loaded(GOLDEN / "gptq-v1", 2)
    loaded.ranks[1].final_norm[[0, 1]] = loaded.ranks[1].final_norm[[1, 0]]
    assert loaded.faults() == ["model.norm.weight on rank 1"]


@pytest.fixture
def qwen3(tmp_path):
    model = config(
        architectures=["Qwen3ForCausalLM"], attention_bias=True, num_hidden_layers=1, head_dim=16
    )
    norms = {f"{FIRST}self_attn.{name}_norm.weight": torch.rand(16).bfloat16() for name in "qk"}
    save_random_folder(tmp_path / "qwen3", model, **norms)
    return tmp_path / "qwen3"


@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
def test_the_norms_of_heads(name, qwen3):
    loaded = Loaded(qwen3, 2)
    assert loaded.faults() == []
    getattr(loaded.ranks[1].layers[0], name)[0] += 1
    assert loaded.faults() == [f"{FIRST}self_attn.{name}.weight on rank 1"]


def test_a_replicated_bias(qwen3):
    loaded = Loaded(qwen3, 3)
    loaded.ranks[2].layers[0].biases["o"][0] += 1
    assert loaded.faults() == [f"{FIRST}self_attn.o_proj.bias on rank 2"]


def test_a_sharded_bias():
    loaded = Loaded(GOLDEN / "gptq-v2", 3)
    loaded.ranks[1].layers[0].biases["q"][0] += 1
    assert loaded.faults() == [f"{FIRST}self_attn.q_proj.bias"]


def test_every_copy_of_the_bias_of_a_kv_head():
    loaded = Loaded(GOLDEN / "gptq-v2", 8)
    for rank in [rank for rank in range(8) if len(loaded.plan.kv_heads(rank))]:
        bias, head = loaded.ranks[rank].layers[0].biases["v"], loaded.plan.kv_heads(rank).start
        right, bias[0] = float(bias[0]), 9.0
        assert loaded.faults() == [f"{FIRST}self_attn.v_proj.bias KV head {head} on rank {rank}"]
        bias[0] = right


def test_a_lost_bias_and_one_too_many():
    loaded = Loaded(GOLDEN / "gptq-v2", 2)
    biases = loaded.ranks[1].layers[0].biases
    right, biases["k"] = biases["k"], None
    assert loaded.faults() == [f"{FIRST}self_attn.k_proj.bias KV head 1 on rank 1"]
    biases["k"], biases["o"] = right, torch.ones(loaded.spec.hidden_size)
    assert loaded.faults() == [f"{FIRST}self_attn.o_proj.bias"]


@pytest.mark.parametrize("name", ["q", "down"])
def test_the_static_scale_of_activations(name):
    loaded = Loaded(GOLDEN / "ct-w8a8-static", 3)
    scale = loaded.product(1, name).input_scale
    full = {"q": "self_attn.q_proj", "down": "mlp.down_proj"}[name]
    for wrong in (scale * 1.001, None):
        loaded.replace(1, name, input_scale=wrong)
        assert loaded.faults() == [FIRST + full]


@pytest.mark.parametrize("case", ["gptq-v2-asymmetric", "ct-int8-channel", "awq"])
@pytest.mark.parametrize("name", ["q", "gate", "down"])
def test_a_code_or_scale_of_a_product(case, name):
    for table in ("data", "scales"):
        loaded = Loaded(GOLDEN / case, 2, "ragged")
        getattr(loaded.product(1, name), table).view(torch.uint8).view(-1)[0] ^= 1
        part = "self_attn" if name == "q" else "mlp"
        assert loaded.faults() == [f"{FIRST}{part}.{name}_proj"]


def test_padded_rows_of_the_vocabulary():
    """130 tokens: rank 1 of 4 has the last two and padding, rank 3 nothing but padding."""
    loaded = Loaded(GOLDEN / "gptq-v1", 4)
    for rank in (1, 3):
        head = loaded.ranks[rank].head
        head.data[-1, 0, -1] = 1  # the last row
        assert loaded.faults() == []
        assert loaded.padding() == {rank: ["lm_head"]}
        head.data[-1, 0, -1] = 0


def test_padded_rows_of_the_embedding():
    loaded = Loaded(GOLDEN / "gptq-v1", 2)
    table = loaded.ranks[1].embedding
    grown = torch.cat((table, torch.ones(1, table.shape[1], dtype=table.dtype)))
    loaded.ranks[1] = dataclasses.replace(loaded.ranks[1], embedding=grown)
    assert loaded.faults() == []
    assert loaded.padding() == {1: ["model.embed_tokens"]}


def test_padded_elements_of_products_and_biases(tmp_path):
    model = config(architectures=["LlamaForCausalLM"], attention_bias=True, mlp_bias=True)
    model |= {"intermediate_size": 100, "num_hidden_layers": 1}
    names = {"gate_proj": 100, "up_proj": 100, "down_proj": 96}
    biases = {f"{FIRST}mlp.{name}.bias": torch.rand(n).bfloat16() for name, n in names.items()}
    save_random_folder(tmp_path, model, **biases)
    loaded = Loaded(tmp_path, 2)
    assert loaded.faults() == []
    loaded.ranks[1].layers[0].biases["up"][-1] = 1
    loaded.product(1, "gate").data[-1, 0, -1] = 1
    loaded.product(1, "down").data[0, -1, 0] = 1
    assert loaded.faults() == []
    assert loaded.padding() == {
        1: [f"{FIRST}mlp.gate_proj", f"{FIRST}mlp.up_proj.bias", f"{FIRST}mlp.down_proj"]
    }
