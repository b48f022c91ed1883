"""Small random models on the card of a test, and steps for them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from isobit.kernels.step.step import Step
from isobit.launch.gpu_check.small_model import MOST_ROWS, open_decoder
from isobit.runtime.forward.decoder import Decoder
from isobit.runtime.trace.tracer import Tracer
from isobit.shard.quantize.folder import QuantizeSettings, quantize_folder

from ..support import save_random_model
from .cards import CountingCard

__all__ = ["KINDS", "MOST_ROWS", "PAGES", "POSITIONS", "VOCABULARY", "decoder", "save", "step"]
KINDS = {"int4": 4, "int8": 8, "dense": 0}
VOCABULARY = 66
POSITIONS = 1024
PAGES = POSITIONS // 64


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
    return open_decoder(model, card, eager=eager, pages=2 * PAGES, tracer=tracer)


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
