"""Choosing the next token from logits: greedy, or drawn with a counter-based random number."""

from __future__ import annotations

import hashlib

import numpy as np

from ..settings.engine import SamplingSettings


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from the seed and the position alone, the same on every machine."""
    data = f"{seed}:{position}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def sample(logits: np.ndarray, sampling: SamplingSettings, position: int) -> int:
    """Return a token id from finite float32 logits [V]; `position` counts from the sequence start.

    Greedy takes the lowest id among equals. Otherwise the probabilities are computed in float64,
    cut to `top_k` and then `top_p`, and inverted at one uniform draw.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    below = logits[order].astype(np.float64) - float(logits[order[0]])
    with np.errstate(over="ignore"):
        cumulative = np.cumsum(np.exp(below / sampling.temperature))
    total = cumulative[-1]
    if sampling.top_p < 1:
        keep = int(np.searchsorted(cumulative, sampling.top_p * total)) + 1
        cumulative = cumulative[:keep]
        total = cumulative[-1]
    drawn = np.searchsorted(cumulative, uniform(sampling.seed, position) * total, side="right")
    return int(order[min(int(drawn), len(cumulative) - 1)])
