"""What comes of a batch of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..digest import chain_digests
from ..scheduler.batch import Request, StepRows
from ..scheduler.step_timer import RankTimes
from ..trace.tracer import Run


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished request. `logits_digest` covers the logits of every emitted token.

    `finish_reason` is "stop", "length" or "error", with the reason in `error`.
    """

    tokens: list[int]
    logits_digest: str
    logits_digests: list[str]
    finish_reason: str
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What came of a static batch. `hidden_digests` has one entry a step; times in seconds.

    `traces` and `steps`, the rows behind them, have one entry a step of a traced run.

    `rank_times` are those of each rank over all decode steps.
    """

    completions: list[Completion]
    hidden_digests: list[str]
    traces: Run
    steps: list[StepRows]
    prefill_s: float
    decode_s: list[float]
    rank_times: Mapping[int, RankTimes]


def completions(requests: Sequence[Request]) -> list[Completion]:
    """The completions of finished requests."""
    return [
        Completion(
            tokens=request.emitted,
            logits_digest=chain_digests(request.logits_digests),
            logits_digests=request.logits_digests,
            finish_reason=request.finish_reason or "length",
            error=request.error,
        )
        for request in requests
    ]
