"""Bytes of the plan against those that the loader, the cache and a step really take."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.kernels.step.kv_cache import KVCache
from isobit.kernels.weights.weight import LINE_K
from isobit.shard.checkpoint.checkpoint import Checkpoint, open_checkpoint
from isobit.shard.contents.expected_tensors import stored_intermediate_size
from isobit.shard.estimate.memory import MemoryModel, memory_model
from isobit.shard.estimate.stored import WeightBytes
from isobit.shard.load.load import RankWeights, load_rank
from isobit.shard.model.spec import DTYPES, ModelSpec, read_spec, spec_from_config
from isobit.shard.plan.modules import atom_ends, feature_slice, layer_modules
from isobit.shard.plan.plan import PlanSettings, ShardPlan, make_plan
from isobit.shard.plan.runs import make_runs

from ...support import DENSE, INT4
from ..configs import QWEN_14B, config, pack_quantized

GOLDEN = sorted(p.parent for p in (DENSE.parent.parent / "tests/golden").glob("*/config.json"))
LAYOUTS = ("pad", "ragged")


@cache
def opened(folder: Path, dtype: str) -> tuple[ModelSpec, Checkpoint, MemoryModel]:
    spec, checkpoint = read_spec(folder), open_checkpoint(folder)
    return spec, checkpoint, memory_model(spec, dtype, 512, checkpoint.entries)


def cut(spec: ModelSpec, checkpoint: Checkpoint | None, degree: int, layout: str) -> ShardPlan:
    say = None if checkpoint is None else stored_intermediate_size(checkpoint)
    return make_plan(spec, PlanSettings(degree=degree, layout=layout), say)  # type: ignore[arg-type]


def allocated(weights: RankWeights) -> WeightBytes:
    """The bytes of every tensor of a loaded rank, in the plan's categories."""
    sums: Counter[str] = Counter()
    for layer in weights.layers:
        for name, product in layer.products.items():
            tables = [product.run_offsets, product.segment_offsets, product.gather]
            sums["codes" if product.scales is not None else "dense"] += product.data.nbytes
            sums["tables"] += sum(t.nbytes for t in tables if t is not None)
            sums["scales"] += sum(
                t.nbytes for t in (product.scales, product.zeros) if t is not None
            )
            if (bias := layer.biases[name]) is not None:
                sums["replicated" if name in ("o", "down") else "dense"] += bias.nbytes
        norms = (layer.input_norm, layer.post_attention_norm, layer.q_norm, layer.k_norm)
        sums["replicated"] += sum(norm.nbytes for norm in norms if norm is not None)
    sums["replicated"] += weights.final_norm.nbytes
    sums["embeddings"] = weights.head.nbytes
    sums["embeddings"] += 0 if weights.embedding is None else weights.embedding.nbytes
    return WeightBytes(**sums)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("degree", [1, 2, 3, 8])
@pytest.mark.parametrize("model", [DENSE, INT4], ids=["dense", "int4"])
def test_weights_take_what_the_loader_allocates(model, degree, layout, dtype):
    spec, checkpoint, memory = opened(model, dtype)
    plan = cut(spec, checkpoint, degree, layout)
    for rank in memory.ranks(plan):
        weights = load_rank(checkpoint, spec, plan, rank.rank, DTYPES[dtype])
        assert rank.weights == allocated(weights)
        products = [p for layer in weights.layers for p in layer.products.values()]
        vectors = [
            vector
            for layer in weights.layers
            for vector in (*layer.biases.values(), layer.input_norm, layer.post_attention_norm)
            if vector is not None
        ]
        held = (*products, weights.head, *vectors, weights.final_norm)
        assert rank.weights.total == sum(each.nbytes for each in held)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", GOLDEN, ids=lambda folder: folder.name)
def test_every_format_takes_what_the_loader_allocates(case, layout):
    dtype = read_spec(case).dtype
    spec, checkpoint, memory = opened(case, dtype)
    plan = cut(spec, checkpoint, 3, layout)
    for rank in memory.ranks(plan):
        found = allocated(load_rank(checkpoint, spec, plan, rank.rank, DTYPES[dtype]))
        if memory.exact:
            assert rank.weights == found
        else:
            # act-order of o_proj: no more than the groups that its features can touch.
            assert found.total <= rank.weights.total <= 1.1 * found.total


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    layout=st.sampled_from(LAYOUTS),
    degree=st.integers(1, 8),
    group=st.sampled_from([8, 12, 32, 40, 128]),
    kv_heads=st.integers(1, 3),
    queries=st.integers(1, 4),
    head_size=st.sampled_from([2, 8, 12, 64]),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
)
def test_random_gptq_models_add_up_run_by_run(
    data, layout, degree, group, kv_heads, queries, head_size, bits, symmetric
):
    """Against sums over the runs that loading makes, for shapes that nobody would train."""
    spec = spec_from_config(
        config(
            hidden_size=data.draw(st.integers(1, 20)) * group,
            intermediate_size=data.draw(st.integers(1, 40)) * group,
            num_attention_heads=kv_heads * queries,
            num_key_value_heads=kv_heads,
            head_dim=head_size,
            torch_dtype="float16",
            quantization_config={
                "quant_method": "gptq",
                "bits": bits,
                "group_size": group,
                "sym": symmetric,
                "desc_act": False,
            },
        ),
        None,
    )
    plan, line = cut(spec, None, degree, layout), LINE_K[f"int{bits}"]
    for rank in memory_model(spec, spec.dtype, 1).ranks(plan):
        codes = scales = 0
        for module in layer_modules(spec, 0).values():
            own = feature_slice(plan, module, rank.rank)
            n, ends, true = own.size, [0, module.k], module.k
            first = 0
            if module.parallel == "row":
                n, ends, true = module.n, atom_ends(plan, module, rank.rank), own.true
                first = own.offset
            spans = make_runs(ends, torch.arange(first, first + true) // group, group).spans
            packed = sum(-(-(end - begin) // line) * line for begin, end in spans)
            columns = -(-n // 64) * 64
            codes += columns * packed * bits // 8
            scales += columns * len(spans) * (2 if symmetric else 3)
        assert rank.weights.codes == spec.layers * codes
        assert rank.weights.scales == spec.layers * scales


def test_qwen_14b_on_two_ranks_by_hand():
    """5120 wide, 20 heads of 128 and 14336 / 2 features a rank; no group straddles a head."""
    spec = spec_from_config({**QWEN_14B, "dtype": "bfloat16"}, None)
    first, second = memory_model(spec, "bfloat16", 512).ranks(cut(spec, None, 2, "pad"))
    weights = first.weights
    assert weights.codes == 40 * (4 * 2560 * 5120 + 3 * 7168 * 5120) // 2
    groups = 3 * 2560 * 40 + 5120 * 20 + 2 * 7168 * 40 + 5120 * 56
    assert weights.scales == 40 * groups * 2
    assert weights.replicated == (40 * 2 + 1) * 5120 * 4
    offsets_of_one_run = 2 * 4 + 2 * 4
    assert weights.embeddings == 2 * 76032 * 5120 * 2 + offsets_of_one_run
    assert first.kv_per_token == 2 * 40 * 20 * 128 * 2
    assert first.rotary == 2 * 32768 * 64 * 4
    # 13696 = 7168 + 6528: the second rank's 640 padded features are 5 groups of down_proj.
    assert first.padding == 0
    codes = 3 * 640 * 5120 // 2
    scales = (2 * 640 * 40 + 5120 * 5) * 2
    tables = 5 * 4
    assert second.weights.total - second.true_weights == 40 * (codes + scales + tables)


def test_channel_scales_and_dense_layers_are_told_apart():
    quantization = pack_quantized(bits=8, group_size=-1, strategy="channel")
    quantization["ignore"] = ["lm_head", "re:.*self_attn.*"]
    spec = spec_from_config(config(quantization_config=quantization), None)
    weights = memory_model(spec, "bfloat16", 1).ranks(cut(spec, None, 1, "ragged"))[0].weights
    # 2 layers, 96 wide, 6 heads and 2 KV heads of 16, 416 features; outputs in tiles of 64.
    assert weights.codes == 2 * (2 * 448 * 96 + 128 * 416)
    # One scale a channel; of down_proj one for every atom, since a run never crosses an atom.
    assert weights.scales == 2 * 2 * (2 * 448 + 8 * 128)
    assert weights.dense == 2 * (2 * (2 * 128 * 96 + 2 * 64 * 96) + 4 * (96 + 2 * 32))


@pytest.mark.parametrize("degree", [1, 2, 3, 8])
def test_kv_cache_takes_what_the_decoder_allocates(degree):
    spec, _, memory = opened(INT4, "bfloat16")
    plan = cut(spec, None, degree, "pad")
    for rank in memory.ranks(plan):
        heads = len(plan.kv_heads(rank.rank))
        caches = [
            KVCache.allocate(3, heads, spec.head_size, torch.bfloat16) for _ in range(spec.layers)
        ]
        assert rank.kv(3 * 64) == rank.kv(2 * 64 + 1) == sum(c.nbytes for c in caches)


def test_a_kv_head_that_two_ranks_need_counts_twice():
    spec = spec_from_config(config(num_key_value_heads=1), None)
    ranks = memory_model(spec, "bfloat16", 1).ranks(cut(spec, None, 8, "pad"))
    assert [rank.kv_heads for rank in ranks] == [1, 0, 1, 1, 1, 0, 1, 1]
    assert sum(rank.kv_per_token for rank in ranks) == 6 * (2 * 2 * 16 * 2)
