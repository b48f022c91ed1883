"""A rank reads what it owns, counted at the file."""

from __future__ import annotations

import pytest

from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.contents.expected_tensors import stored_intermediate_size
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import DENSE, INT4


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("model", [DENSE, INT4], ids=["dense", "int4"])
def test_ranks_together_read_the_file_once(model, degree):
    spec, checkpoint = read_spec(model), open_checkpoint(model)
    settings = PlanSettings(degree=degree, layout="ragged")
    plan = make_plan(spec, settings, stored_intermediate_size(checkpoint))
    read = sum(
        load_rank(checkpoint, spec, plan, rank, spec.torch_dtype).bytes_read
        for rank in range(degree)
    )
    entries = checkpoint.entries
    once = sum(e.nbytes for name, e in entries.items() if not name.endswith("weight_shape"))
    replicated = sum(e.nbytes for e in entries.values() if len(e.shape) == 1)
    # A KV head whose query heads lie on two ranks is read by both.
    kept = sum(len(plan.kv_heads(rank)) for rank in range(degree))
    kv = sum(e.nbytes for name, e in entries.items() if "k_proj" in name or "v_proj" in name)
    twice = kv * (kept - spec.kv_heads) / spec.kv_heads
    assert once <= read <= 1.02 * (once + replicated * (degree - 1) + twice)
