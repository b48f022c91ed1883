"""What rank 0 says of rows of logits: the next token's probability, and the reference's distance.

One row at a time, in float64: a row's numbers depend neither on the step nor on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .logits_file import LogitsFile


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-softmax of finite logits [V] of any float dtype: float64 [V]."""
    below = logits.astype(np.float64) - float(logits.max())
    return below - np.log(np.exp(below).sum())


def divergence(reference: np.ndarray, model: np.ndarray) -> float:
    """KL divergence reference||model in nats, of finite log-probabilities float64 [V].

    Rounding can take the sum of nearly equal distributions below zero: that is zero.
    """
    return max(0.0, float((np.exp(reference) * (reference - model)).sum()))


def score_rows(logits: np.ndarray, tokens: list[int], score: Mapping[str, Any]) -> dict[str, Any]:
    """The "score" of a step message carried out on float32 logits [L, V].

    `tokens` are the likeliest tokens, -1 for rows that are not finite. `score` has "next", the
    token ids that follow, and for a file of logits "path", "mode" ("write" or "read") and "rows",
    the rows of the file. Returns what `judge_rows` does. Raises EnvironmentFault E-EVAL-FILE when
    the file cannot be used.
    """
    if not score["mode"]:
        return judge_rows(logits, tokens, score["next"])
    file = LogitsFile(path=Path(score["path"]), vocabulary=logits.shape[1])
    if score["mode"] == "write":
        file.write(score["rows"], logits)
        return judge_rows(logits, tokens, score["next"])
    rows = score["rows"]
    return judge_rows(logits, tokens, score["next"], lambda place: file.read(rows[place]))


def judge_rows(
    logits: np.ndarray,
    tokens: list[int],
    following: Sequence[int],
    reference: Callable[[int], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Score float32 logits [L, V] whose likeliest tokens are `tokens`, -1 where not finite.

    `following` are the ids that follow, `reference(i)` finite logits [V] of another model at row i.
    Returns lists of L: "tokens", "finite", "log_probabilities" and "divergences" from the
    reference; NaN where a row is not finite or nothing is compared.
    """
    finite = [token >= 0 for token in tokens]
    wanted = [math.nan] * len(tokens)
    divergences = [math.nan] * len(tokens)
    for place, token in enumerate(following):
        if not finite[place]:
            continue
        row = log_probabilities(logits[place])
        wanted[place] = float(row[token])
        if reference is not None:
            divergences[place] = divergence(log_probabilities(reference(place)), row)
    return {
        "tokens": tokens,
        "finite": finite,
        "log_probabilities": wanted,
        "divergences": divergences,
    }
