"""What rank 0 says of rows of logits: the next token's probability, and the reference's distance.

One row at a time, in float64: a row's numbers depend neither on the step nor on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    the rows of the file. Returns lists of L: "tokens", "finite", "log_probabilities" and
    "divergences" from the file's rows, which are finite; NaN where a row is not finite or nothing
    was read. Raises EnvironmentFault E-EVAL-FILE when the file cannot be used.
    """
    finite = [token >= 0 for token in tokens]
    file = None
    if score["mode"]:
        file = LogitsFile(path=Path(score["path"]), vocabulary=logits.shape[1])
    if file is not None and score["mode"] == "write":
        file.write(score["rows"], logits)
    wanted = [math.nan] * len(tokens)
    divergences = [math.nan] * len(tokens)
    for place, token in enumerate(score["next"]):
        if not finite[place]:
            continue
        row = log_probabilities(logits[place])
        wanted[place] = float(row[token])
        if file is not None and score["mode"] == "read":
            reference = log_probabilities(file.read(score["rows"][place]))
            divergences[place] = divergence(reference, row)
    return {
        "tokens": tokens,
        "finite": finite,
        "log_probabilities": wanted,
        "divergences": divergences,
    }
