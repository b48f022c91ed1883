"""What quantization did to a model: the loss as a whole, and the part of each half of a layer.

Both models run in plain torch and float32 (plain_model.py). Every half of a layer, attention or
MLP, is quantized alone in a stream of its own, which then follows the dense layers to the end: that
is what this half costs. Half a layer is the smallest part that can be compared: methods move scales
between its products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...shard.model.spec import ModelSpec
from ...shard.plan.modules import layer_modules
from ..evaluation.evaluate import perplexity
from ..evaluation.score import divergence, log_probabilities
from .plain_model import PlainHead, PlainLayer, PlainModel

HALVES = ("self_attn", "mlp")
DENSE, QUANTIZED = 0, 1
FLOAT64, FLOAT32 = 8, 4
_Half = tuple[str, int, float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Token ids; those from `begin` on are scored, given all before them."""

    ids: list[int]
    begin: int

    @property
    def rows(self) -> slice:
        """The rows whose logits are for scored tokens."""
        return slice(self.begin - 1, len(self.ids) - 1)


@dataclass(frozen=True, kw_only=True)
class HalfDamage:
    """Of half a layer. `sqnr_db`: what it adds to the residual stream over the error of that, on
    the inputs of the dense model; `stream_db`: the stream behind it over the error of all so far;
    None where there is no error. `kl`: mean divergence in nats when it alone is quantized, None
    where that was not measured.
    """

    name: str
    layer: int
    sqnr_db: float | None
    stream_db: float | None
    kl: float | None


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Mean divergence reference || quantized in nats, both perplexities, and the halves' parts."""

    kl: float
    kl_worst: float
    perplexity: float
    reference_perplexity: float
    halves: tuple[HalfDamage, ...]


def work(spec: ModelSpec, tokens: int, alone: bool) -> float:
    """Multiplications that measure_damage takes."""
    halves = len(HALVES) * spec.layers
    streams = 3 + (halves / 2 if alone else 0)
    ends = spec.vocab_size * spec.hidden_size * (2 + (halves if alone else 0))
    return tokens * (_layer_weights(spec) * spec.layers * streams + ends)


def memory(spec: ModelSpec) -> int:
    """Bytes that measure_damage takes at most: two layers, and a product while it is unpacked."""
    modules = layer_modules(spec, 0).values()
    largest = max(module.n * module.k for module in modules)
    layer = 2 * (2 * FLOAT32) * _layer_weights(spec) + 3 * FLOAT64 * largest
    head = (2 * 2 * FLOAT32 + 3 * FLOAT64) * spec.vocab_size * spec.hidden_size
    return max(layer, head)


def plain_logits(model: PlainModel, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Float32 [T - 1, vocabulary] for every sample."""
    streams = [model.embed(torch.tensor(sample.ids))[None] for sample in samples]
    for number in range(model.spec.layers):
        layer = model.layer(number)
        streams = [layer.mlp(layer.attention(stream)) for stream in streams]
    head = model.end()
    return [head.logits(stream[0, :-1]) for stream in streams]


def measure_damage(
    model: PlainModel, reference: PlainModel, samples: Sequence[Sample], alone: bool
) -> Damage:
    """Compare a model with what it was before quantization; `alone` measures each half's `kl`."""
    streams = []
    for sample in samples:
        ids = torch.tensor(sample.ids)
        streams.append(torch.stack([reference.embed(ids), model.embed(ids)]))
    halves: list[_Half] = []
    for number in range(reference.spec.layers):
        # Nothing here may hold on to a layer while the next one is read.
        through = _through(reference.layer(number), model.layer(number), streams, alone)
        halves += [
            (f"layers.{number}.{name}", number, own, all_so_far)
            for name, own, all_so_far in through
        ]
    return _compared(reference.end(), model.end(), samples, streams, halves)


def _through(
    dense: PlainLayer, quantized: PlainLayer, streams: list[torch.Tensor], alone: bool
) -> list[tuple[str, float | None, float | None]]:
    """Take all streams through a layer, in place; each half's name and its decibels."""
    found = []
    for name in HALVES:
        right = dense.attention if name == "self_attn" else dense.mlp
        ours = quantized.attention if name == "self_attn" else quantized.mlp
        energies = torch.zeros(4, dtype=torch.float64)
        for i, stream in enumerate(streams):
            before = stream[DENSE]
            followed = right(torch.cat([stream[:1], stream[2:]]))
            changed = ours(torch.stack([before, stream[QUANTIZED]]))
            energies += torch.stack(
                [
                    _energy(followed[0] - before),
                    _energy(changed[0] - followed[0]),
                    _energy(followed[0]),
                    _energy(changed[1] - followed[0]),
                ]
            )
            begun = [changed[:1]] if alone else []
            streams[i] = torch.cat([followed[:1], changed[1:], followed[1:], *begun])
        signal, noise, whole, off = energies.tolist()
        found.append((name, _decibels(signal, noise), _decibels(whole, off)))
    return found


def _compared(
    right: PlainHead,
    ours: PlainHead,
    samples: Sequence[Sample],
    streams: Sequence[torch.Tensor],
    halves: Sequence[_Half],
) -> Damage:
    divergences: list[list[float]] = [[] for _ in range(len(streams[0]) - 1)]
    said: tuple[list[float], list[float]] = ([], [])
    for sample, stream in zip(samples, streams, strict=True):
        wanted = sample.ids[sample.begin :]
        dense = _rows(right, stream[DENSE, sample.rows])
        said[DENSE].extend(float(row[token]) for row, token in zip(dense, wanted, strict=True))
        for number, each in enumerate(stream[1:]):
            rows = _rows(right if number else ours, each[sample.rows])
            divergences[number] += [divergence(*pair) for pair in zip(dense, rows, strict=True)]
            if not number:
                said[QUANTIZED].extend(
                    float(row[token]) for row, token in zip(rows, wanted, strict=True)
                )
    means = [math.fsum(each) / len(each) for each in divergences]
    alone = means[1:] or [None] * len(halves)
    return Damage(
        kl=means[0],
        kl_worst=max(divergences[0]),
        perplexity=perplexity(said[QUANTIZED]),
        reference_perplexity=perplexity(said[DENSE]),
        halves=tuple(
            HalfDamage(name=name, layer=layer, sqnr_db=own, stream_db=all_so_far, kl=kl)
            for (name, layer, own, all_so_far), kl in zip(halves, alone, strict=True)
        ),
    )


def _rows(head: PlainHead, hidden: torch.Tensor) -> list[np.ndarray]:
    return [log_probabilities(row.numpy()) for row in head.logits(hidden)]


def _energy(x: torch.Tensor) -> torch.Tensor:
    return x.double().square().sum()


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal and noise else None


def _layer_weights(spec: ModelSpec) -> int:
    return sum(module.n * module.k for module in layer_modules(spec, 0).values())
