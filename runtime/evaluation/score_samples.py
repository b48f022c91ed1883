"""Scoring samples of text with a running model: what each position makes of the token after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from isobit.errors import InputError

from ...shard.model.spec import ModelSpec
from ..engine.engine import Engine
from ..scheduler.batch import Request, advance, assign_pages, form_step, room
from ..scheduler.kv_pages import pages_for
from ..settings.engine import SamplingSettings, most_sampled

# A step's logits stand in every rank's memory; a large vocabulary takes fewer rows a step.
MOST_LOGITS_BYTES = 64 << 20
FEWEST_ROWS = 16
SHORTEST = 2


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The file of logits of a comparison: the reference's run writes it, the model's reads it."""

    path: Path
    mode: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One entry for every scored position, sample after sample; a sample of n tokens has n - 1.

    `log_probabilities` of the tokens that follow (natural, float64), `tokens` the likeliest ones,
    -1 where logits were not finite. `divergences` from the reference in nats, empty without one.
    """

    log_probabilities: list[float]
    tokens: list[int]
    finite: list[bool]
    divergences: list[float]


def positions_of(samples: Sequence[list[int]]) -> int:
    """How many positions of samples are scored."""
    return sum(len(sample) - 1 for sample in samples)


def check_samples(spec: ModelSpec, samples: Sequence[list[int]]) -> None:
    """Raise InputError E-EVAL-TOKENS naming every sample that this model cannot score."""
    wrong = []
    for number, sample in enumerate(samples):
        if len(sample) < SHORTEST:
            wrong.append(f"sample {number}: {len(sample)} tokens; the second is the first scored")
        if len(sample) > spec.max_positions:
            wrong.append(f"sample {number}: {len(sample)} tokens exceed {room(spec)}")
        if bad := [token for token in sample if not 0 <= token < spec.vocab_size]:
            wrong.append(f"sample {number}: token {bad[0]} is not in 0..{spec.vocab_size - 1}")
    if not samples:
        wrong.append("no samples")
    if wrong:
        raise InputError("E-EVAL-TOKENS", "\n".join(wrong))


def score(
    engine: Engine,
    samples: Sequence[list[int]],
    exchange: Exchange | None = None,
    on_scored: Callable[[int], None] = lambda positions: None,
) -> Scores:
    """Score every token of every sample but its first; `on_scored` gets how many each step did.

    Equal bits come of every degree, batch and piece. Raises InputError E-EVAL-TOKENS, E-KV-CACHE
    when the longest sample does not fit the cache, RankFault and E-EVAL-FILE as steps do.
    """
    check_samples(engine.spec, samples)
    starts = list(accumulate((len(sample) - 1 for sample in samples), initial=0))
    total = starts[-1]
    scores = Scores(
        log_probabilities=[0.0] * total,
        tokens=[0] * total,
        finite=[False] * total,
        divergences=[0.0] * (total if exchange is not None and exchange.mode == "read" else 0),
    )
    fitting = MOST_LOGITS_BYTES // (4 * engine.spec.vocab_size)
    most_rows = min(
        engine.settings.max_step_rows,
        max(FEWEST_ROWS, fitting),
        most_sampled(engine.settings),
    )
    for group in _groups(samples, engine.kv_pages):
        # The last token of a sample is only looked for, never looked at.
        requests = [
            Request(prompt=samples[i][:-1], sampling=SamplingSettings(max_tokens=1)) for i in group
        ]
        assign_pages(requests, engine.kv_pages)
        while not all(request.finished for request in requests):
            rows = form_step(requests, most_rows)
            rows = dataclasses.replace(rows, sampled=list(range(len(rows.tokens))))
            places = [
                starts[group[owner]] + position
                for owner, position in zip(rows.owner, rows.positions, strict=True)
            ]
            answer = engine.score_step(
                requests,
                rows,
                {
                    "next": [
                        samples[group[owner]][position + 1]
                        for owner, position in zip(rows.owner, rows.positions, strict=True)
                    ],
                    "path": "" if exchange is None else str(exchange.path),
                    "mode": "" if exchange is None else exchange.mode,
                    "rows": places,
                },
            )
            for field in dataclasses.fields(scores):
                if values := getattr(scores, field.name):
                    _put(values, places, answer[field.name])
            advance(requests, rows)
            for request in requests:
                if request.computed == len(request.prompt):
                    request.finish_reason = "length"
            on_scored(len(places))
    return scores


def _put(values: list, places: Sequence[int], new: Sequence) -> None:
    for place, value in zip(places, new, strict=True):
        values[place] = value


def _groups(samples: Sequence[list[int]], pages: int) -> Iterator[list[int]]:
    """Runs of consecutive samples that fit the KV cache together; one that never fits is alone."""
    group: list[int] = []
    used = 0
    for index, sample in enumerate(samples):
        need = pages_for(len(sample))
        if group and used + need > pages:
            yield group
            group, used = [], 0
        group.append(index)
        used += need
    if group:
        yield group
