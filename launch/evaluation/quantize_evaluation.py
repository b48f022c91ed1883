"""How a folder that was just quantized compares with its source, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isobit.errors import InputError

from ...runtime.evaluation.evaluate import evaluate, report
from ...runtime.evaluation.score_samples import positions_of
from ...runtime.evaluation.streamed_scores import score_streamed
from ..text.evaluation_text import EvaluationText, built_in_text, given_text, spread
from .advice import LIMITS

FEW = 1000
"""Positions under which the mean divergence of one text says little of another."""

ROUGH = "Few positions: the numbers are rough"
HELD_OUT = "text that calibration did not see"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a model will be evaluated on; None for a reason, which is said."""

    text: EvaluationText | None
    reason: str


def plan_evaluation(
    model: Path, files: Sequence[Path], held_out: torch.Tensor | None, length: int
) -> Plan:
    """Choose the text: files, else what calibration left over, else isobit's own.

    Without files a model that has no tokenizer is not evaluated. Raises InputError E-EVAL-TEXT,
    E-EVAL-TOKENS, E-TOKENIZER for files.
    """
    if files:
        return Plan(text=given_text(model, files, length), reason="")
    if held_out is not None and len(held_out) and held_out.shape[1] > 1:
        return Plan(text=EvaluationText(samples=spread(held_out), source=HELD_OUT), reason="")
    try:
        text = built_in_text(model, length)
    except InputError as error:
        if error.code not in ("E-TOKENIZER", "E-EVAL-TOKENS"):
            raise
        return Plan(text=None, reason=error.message)
    if held_out is None:
        return Plan(text=text, reason="--evaluate-text FILE takes yours")
    return Plan(
        text=text, reason="calibration used all of its text; --evaluate-text FILE takes more"
    )


def loss(evaluation: Mapping[str, Any]) -> str:
    """What was lost, in words, with the limits."""
    limits, more, kl = (evaluation[k] for k in ("limits", "perplexity_increase", "kl_mean"))
    return (
        f"perplexity {'past all numbers' if more is None else f'{more:+.1%}'}, KL divergence "
        f"{'past all numbers' if kl is None else f'{kl:.3g} nats'}; good 4-bit weights stay below "
        f"{limits['perplexity_increase']:+.0%} and {limits['kl_mean']:g} nats"
    )


def evaluate_quantized(
    out: Path, model: Path, text: EvaluationText, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Compare a quantized folder with its source: what `isobit evaluate --json` says, and the text.

    "passed" is False when more is lost than LIMITS, or a logit is not finite. Raises what
    score_streamed does.
    """
    scores, reference = score_streamed(out, model, text.samples, progress)
    samples = text.samples.tolist()
    return {
        "text": text.source,
        "samples": len(samples),
        "length": text.samples.shape[1],
        "positions": positions_of(samples),
        "rough": positions_of(samples) < FEW,
        **report(evaluate(samples, scores, reference, LIMITS), samples),
        "limits": {"perplexity_increase": LIMITS.perplexity_increase, "kl_mean": LIMITS.kl},
    }
