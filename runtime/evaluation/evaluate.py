"""A model against its reference: perplexity, divergence, agreement, and the gates they pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .score_samples import Scores

P99 = 0.99


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Most that a model may be worse than its reference; None asks nothing.

    `perplexity_increase` is a ratio less one, `kl` the mean divergence in nats.
    """

    perplexity_increase: float | None = None
    kl: float | None = None

    @property
    def any(self) -> bool:
        return self.perplexity_increase is not None or self.kl is not None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A scored position: token number `position` of a sample has seen itself and what is before."""

    sample: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model beside its reference; divergences are reference||model, in nats."""

    reference_perplexity: float
    perplexity_increase: float
    kl_mean: float
    kl_p99: float
    kl_worst: float
    kl_worst_at: Place
    top1_agreement: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out. Numbers are NaN where logits were not finite, at `not_finite` positions.

    `perplexity` and `comparison` are None when nothing was scored.
    """

    perplexity: float | None
    not_finite: list[Place]
    comparison: Comparison | None
    failures: list[str]
    passed: bool | None


def perplexity(log_probabilities: Sequence[float]) -> float:
    """exp of the mean negative log-probability, the sum being exact; infinite past float64."""
    mean = -math.fsum(log_probabilities) / len(log_probabilities)
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated between neighbours."""
    return float(np.quantile(np.array(values, dtype=np.float64), share))


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first token that differs; where one ends early, its length. None when equal."""
    for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def place_of(samples: Sequence[list[int]], index: int) -> Place:
    """Where entry `index` of Scores lies."""
    for number, sample in enumerate(samples):
        if index < len(sample) - 1:
            return Place(sample=number, position=index)
        index -= len(sample) - 1
    raise IndexError(index)


def compare(samples: Sequence[list[int]], model: Scores, reference: Scores) -> Comparison:
    """Compare scores of the same samples; `model` has divergences."""
    ours, theirs = perplexity(model.log_probabilities), perplexity(reference.log_probabilities)
    worst = int(np.argmax(model.divergences))
    agreed = sum(a == b for a, b in zip(model.tokens, reference.tokens, strict=True))
    return Comparison(
        reference_perplexity=theirs,
        perplexity_increase=ours / theirs - 1,
        kl_mean=math.fsum(model.divergences) / len(model.divergences),
        kl_p99=percentile(model.divergences, P99),
        kl_worst=model.divergences[worst],
        kl_worst_at=place_of(samples, worst),
        top1_agreement=agreed / len(model.tokens),
    )


def evaluate(
    samples: Sequence[list[int]],
    model: Scores,
    reference: Scores | None,
    gates: Gates,
    found: Sequence[str] = (),
) -> Evaluation:
    """The verdict on a model; `found` are failures seen elsewhere.

    It fails without any gate for those, and when a logit is not finite.
    """
    bad = [place_of(samples, i) for i, finite in enumerate(model.finite) if not finite]
    scored = bool(samples)
    comparison = compare(samples, model, reference) if scored and reference else None
    failures = list(found)
    if bad:
        failures.append(f"NaN or infinity in the logits of {len(bad)} of {len(model.finite)} rows")
    if comparison is not None:
        failures += [
            f"{name} {value:.6g} is not at most {most:.6g}"
            for name, value, most in (
                ("perplexity_increase", comparison.perplexity_increase, gates.perplexity_increase),
                ("kl_mean", comparison.kl_mean, gates.kl),
            )
            # A number that is NaN passes no gate.
            if most is not None and not value <= most
        ]
    return Evaluation(
        perplexity=perplexity(model.log_probabilities) if scored else None,
        not_finite=bad,
        comparison=comparison,
        failures=failures,
        passed=not failures if failures or gates.any else None,
    )


def number(value: float | None) -> float | None:
    """A number as JSON has it: None for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def report(evaluation: Evaluation, samples: Sequence[list[int]]) -> dict[str, Any]:
    """The evaluation as JSON has it; the reference's numbers are None without one."""
    compared = evaluation.comparison
    fields = ("reference_perplexity", "perplexity_increase", "kl_mean", "kl_p99")
    result: dict[str, Any] = {"perplexity": number(evaluation.perplexity)}
    for name in (*fields, "top1_agreement"):
        result[name] = None if compared is None else number(getattr(compared, name))
    result["kl_worst"] = None
    if compared is not None:
        at = compared.kl_worst_at
        result["kl_worst"] = {
            "value": number(compared.kl_worst),
            "sample": at.sample,
            "position": at.position,
            "token": samples[at.sample][at.position],
            "next_token": samples[at.sample][at.position + 1],
        }
    bad = evaluation.not_finite
    result["not_finite"] = {
        "positions": len(bad),
        "first": {"sample": bad[0].sample, "position": bad[0].position} if bad else None,
    }
    result["failures"], result["passed"] = evaluation.failures, evaluation.passed
    return result
