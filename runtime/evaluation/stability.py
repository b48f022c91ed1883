"""Signs of a broken model in long greedy text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_PERIOD = 8
FEWEST_TIMES = 16
ZERO = 0


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """The first `period` tokens that are said at least 16 times on end, from `index` on."""

    index: int
    period: int
    tokens: list[int]

    @property
    def zeros(self) -> bool:
        """Token 0 over and over: "!!!!" in many vocabularies, and what a NaN often becomes."""
        return self.tokens == [ZERO]


def broken(tokens: Sequence[int], error: str | None) -> str | None:
    """What no text may show: logits that are not finite, token 0 over and over. Else None."""
    if error is not None:
        return error
    found = first_repetition(tokens)
    if found is None or not found.zeros:
        return None
    return f"token 0 over and over from token {found.index} on"


def first_repetition(tokens: Sequence[int]) -> Repetition | None:
    """The repetition that is complete first, of the shortest period; None when there is none."""
    equal = [0] * (LONGEST_PERIOD + 1)
    for end, token in enumerate(tokens):
        for period in range(1, LONGEST_PERIOD + 1):
            same = end >= period and token == tokens[end - period]
            equal[period] = equal[period] + 1 if same else 0
            if equal[period] >= period * (FEWEST_TIMES - 1):
                first = end + 1 - period * FEWEST_TIMES
                return Repetition(
                    index=first, period=period, tokens=list(tokens[first : first + period])
                )
    return None
