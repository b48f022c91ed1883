"""Numbers that are counted without compiling: docs say them, and a loaded model starts them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bench.launches import decode_step, prefill_step, started
from bench.scale.models import assumed
from bench.shape import SHAPE
from isobit.kernels.gpu.device import Gpu
from isobit.kernels.gpu.launch import Launch
from isobit.kernels.gpu.simulated.card import SimulatedCard
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.forward.decoder import Decoder
from isobit.runtime.trace.tracer import Tracer
from isobit.shard.load.load import dummy_rank
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.plan import PlanSettings, make_plan

from .conftest import INTERPRETED
from .numbers import DOCUMENT, launch_table, section

SMALL = SHAPE | {
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_hidden_layers": 1,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


def test_the_document_has_the_launches_of_a_layer() -> None:
    assert section(DOCUMENT.read_text(encoding="utf-8"), "launches") == launch_table()


@pytest.mark.skipif(not INTERPRETED, reason="the card is simulated")
@pytest.mark.parametrize("size", [1, 3])
def test_a_loaded_model_starts_the_kernels_that_were_counted(size: int) -> None:
    spec = assumed(spec_from_config(SMALL, None), "int4", 128)
    plan = make_plan(spec, PlanSettings(degree=size))
    steps = (decode_step(1, 500), decode_step(4, 600), prefill_step(128, sampled=False))
    for rank in range(size):
        gpu = Gpu(SimulatedCard(), most_rows=128, eager=True)
        weights = dummy_rank(spec, plan, rank, torch.bfloat16, gpu)
        loaded = Decoder(
            spec, plan, rank, weights, GatherCollectives(plan, rank), Tracer(None),
            dtype=torch.bfloat16, kv_pages=16, device=gpu,
        )  # fmt: skip
        for step in steps:
            items = loaded.recorded.program.items(step)
            names = (i.kernel.__name__ if isinstance(i, Launch) else "call" for i in items)
            assert Counter(names) == started(spec, plan, rank, step, 1), (rank, step.rows)
