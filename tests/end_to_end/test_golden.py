"""Checkpoints that other packages wrote: weights, logits, and the same bits at every degree.

tests/golden/README.md says which package made each case and what it rounds.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from isobit.kernels.weights.layout import unpack
from isobit.runtime.engine.engine import Engine
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.contents.expected_tensors import stored_intermediate_size
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.modules import layer_modules
from isobit.shard.plan.plan import PlanSettings, make_plan
from isobit.shard.verify.verify_load import (
    compare,
    file_fingerprints,
    padding_faults,
    rank_fingerprints,
)

from ..support import GOLDEN, all_logits

CASES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.safetensors"))

# Both sides multiply the same float32 weights; only the order of additions differs.
LOGITS_BOUND = 2e-5
# The oracle has one activation scale per token, isobit one per token and atom in row-parallel
# products, and absmax / 127 where it has 127.5: another rounding of 8-bit activations.
WIDER_BOUNDS = {"ct-w8a8-dynamic": 0.03}
# bitsandbytes computes weight * SCB / 127, isobit weight * (SCB / 127): two roundings each.
ROUNDED_TWICE = {"bnb-int8": 3e-7}


def plan_of(case: str, degree: int, layout: str):
    folder = GOLDEN / case
    spec, checkpoint = read_spec(folder), open_checkpoint(folder)
    settings = PlanSettings(degree=degree, layout=layout)  # type: ignore[arg-type]
    return spec, checkpoint, make_plan(spec, settings, stored_intermediate_size(checkpoint))


@pytest.mark.parametrize("case", CASES)
def test_dequantized_weights_equal_the_oracles(case):
    """(code - zero) * scale in float32 is one rounding, the same one that the packages make."""
    expected = load_file(GOLDEN / case / "expected.safetensors")
    spec, checkpoint, plan = plan_of(case, 1, "ragged")
    weights = load_rank(checkpoint, spec, plan, 0, torch.float32)
    for layer in range(spec.layers):
        for name, module in layer_modules(spec, layer).items():
            if f"{module.name}.weight" not in expected:
                continue
            ours = dequantized(weights.layers[layer].products[name])
            theirs = expected[f"{module.name}.weight"]
            if name in ("gate", "up", "down"):
                # act-order permutes intermediate features: compare them as sets of rows
                axis = 1 if name == "down" else 0
                ours, theirs = sorted_along(ours, axis), sorted_along(theirs, axis)
            bound = ROUNDED_TWICE.get(case, 0.0) * theirs.abs().max()
            assert (ours - theirs).abs().max() <= bound, module.name


def dequantized(packed) -> torch.Tensor:
    values, scales, zeros = unpack(packed)
    if scales is None:
        return values.float()
    lengths = packed.run_offsets.diff().long()
    run_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    source = torch.arange(packed.k) if packed.gather is None else packed.gather.long()
    runs = torch.empty(packed.k, dtype=torch.int64)
    runs[source[source >= 0]] = run_of[source >= 0]
    middle = 8 if packed.kind == "int4" else 128
    zero = middle if zeros is None else zeros[:, runs].float()
    return (values.float() - zero) * scales[:, runs].float()


def sorted_along(weight: torch.Tensor, axis: int) -> torch.Tensor:
    rows = weight.T if axis == 1 else weight
    keys = (rows.double() @ torch.linspace(1, 2, rows.shape[1], dtype=torch.float64)).argsort()
    return rows[keys]


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_the_oracle(case):
    expected = load_file(GOLDEN / case / "expected.safetensors")
    ours = all_logits(GOLDEN / case, expected["ids"].tolist(), "float32")
    error = (ours - expected["logits"]).abs().max() / expected["logits"].abs().max()
    assert error < WIDER_BOUNDS.get(case, LOGITS_BOUND)


@pytest.mark.parametrize("layout", ["pad", "ragged"])
@pytest.mark.parametrize("case", CASES)
def test_shards_together_are_the_file(case, layout):
    for degree in (1, 2, 3, 4, 8):
        spec, checkpoint, plan = plan_of(case, degree, layout)
        dtype = spec.torch_dtype
        expected = file_fingerprints(checkpoint, spec, dtype)
        loaded = [load_rank(checkpoint, spec, plan, rank, dtype) for rank in range(degree)]
        found = [
            rank_fingerprints(checkpoint, spec, plan, rank, weights)
            for rank, weights in enumerate(loaded)
        ]
        assert compare(expected, found) == []
        for rank, weights in enumerate(loaded):
            assert padding_faults(plan, rank, spec, weights) == []


@pytest.mark.parametrize("layout", ["pad", "ragged"])
@pytest.mark.parametrize("case", CASES)
def test_degrees_agree_bit_for_bit(case, layout):
    ids = load_file(GOLDEN / case / "expected.safetensors")["ids"].tolist()
    dtype = read_spec(GOLDEN / case).dtype
    one = all_logits(GOLDEN / case, ids, dtype, layout)
    for degree in (2, 3, 4):
        assert torch.equal(all_logits(GOLDEN / case, ids, dtype, layout, degree), one), degree


@pytest.mark.parametrize("case", ["awq", "gptq-act-order", "ct-w8a8-dynamic"])
def test_degrees_agree_over_processes(case):
    ids = load_file(GOLDEN / case / "expected.safetensors")["ids"].tolist()
    sampling = SamplingSettings(max_tokens=4, ignore_eos=True)
    outcomes = []
    for degree in (1, 2, 3):
        settings = EngineSettings(plan=PlanSettings(degree=degree, layout="ragged"))
        with Engine(GOLDEN / case, settings, LocalLauncher()) as engine:
            batch = engine.generate([ids], [sampling])
        outcomes.append((batch.completions, batch.hidden_digests))
    assert all(outcome == outcomes[0] for outcome in outcomes)
