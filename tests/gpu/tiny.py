"""Small random models on the card of a test, and steps for them."""

from __future__ import annotations

from pathlib import Path

import torch
from isobit.kernels.gpu.device import Gpu
from isobit.kernels.step import Step
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.decoder import Decoder
from isobit.runtime.trace import Tracer
from isobit.shard.checkpoint import open_checkpoint
from isobit.shard.expected_tensors import stored_intermediate_size
from isobit.shard.load import load_rank
from isobit.shard.plan import PlanSettings, make_plan
from isobit.shard.quantize.folder import QuantizeSettings, quantize_folder
from isobit.shard.spec import read_spec
from transformers import Qwen2Config, Qwen2ForCausalLM

from ..support import save_random_model
from .cards import CountingCard

KINDS = {"int4": 4, "int8": 8, "dense": 0}
VOCABULARY = 66
POSITIONS = 1024
PAGES = POSITIONS // 64
MOST_ROWS = 16


def save(folder: Path, kind: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model of one layer with biases; heads of 16, three groups of 32 in the MLP."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        dtype=dtype,
    )
    dense = save_random_model(folder / "dense", Qwen2ForCausalLM(config).to(dtype))
    if kind == "dense":
        return dense
    quantize_folder(dense, folder / kind, QuantizeSettings(bits=KINDS[kind], group_size=32))
    return folder / kind


def decoder(
    model: Path, card: CountingCard, *, eager: bool = False, tracer: Tracer | None = None
) -> Decoder:
    """A single rank with a cache of 2 * PAGES pages of zeros."""
    spec, checkpoint = read_spec(model), open_checkpoint(model)
    plan = make_plan(spec, PlanSettings(), stored_intermediate_size(checkpoint))
    gpu = Gpu(card, most_rows=MOST_ROWS, eager=eager)
    dtype = spec.torch_dtype
    made = Decoder(
        spec,
        plan,
        0,
        load_rank(checkpoint, spec, plan, 0, dtype, gpu),
        GatherCollectives(plan, 0),
        tracer or Tracer(None),
        dtype=dtype,
        kv_pages=2 * PAGES,
        device=gpu,
    )
    for cache in made.caches:
        cache.keys.zero_(), cache.values.zero_()
    return made


def step(*pieces: tuple[int, int, list[int]], sampled: list[int] | None = None) -> Step:
    """Pieces (sequence, first position, tokens), all rows sampled; a sequence has PAGES pages."""
    tokens = [token for _, _, piece in pieces for token in piece]
    owner = [sequence for sequence, _, piece in pieces for _ in piece]
    positions = [first + i for _, first, piece in pieces for i in range(len(piece))]
    tables = torch.arange(2 * PAGES, dtype=torch.int32).view(2, PAGES)
    slots = [s * POSITIONS + p for s, p in zip(owner, positions, strict=True)]
    return Step(
        tokens=torch.tensor(tokens),
        positions=torch.tensor(positions, dtype=torch.int32),
        slots=torch.tensor(slots),
        sequence=torch.tensor(owner, dtype=torch.int32),
        block_tables=tables,
        sampled=torch.arange(len(tokens))
        if sampled is None
        else torch.tensor(sampled, dtype=torch.int64),
    )
