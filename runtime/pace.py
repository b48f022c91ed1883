"""How long the steps of a run take, and so how many of them the ranks make in one go."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

GO_S = 0.03
"""People see no delay in it, and a small model spares the work of a message for most steps."""
MOST_STEPS = 16


class Pace:
    """Times of one batch in seconds, from its beginning on."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self.prefill_s = 0.0
        """Until every request had its first token."""
        self.decode_s: list[float] = []
        """Of each step after that; the steps of one go share its time."""
        self.kernels_s: list[float] = []
        self.collectives_s: list[float] = []

    def add(self, answers: Sequence[Mapping[int, Mapping[str, Any]]], all_have_begun: bool) -> None:
        """Note the answers, by rank, to steps that were made in one go and have just come in."""
        now = time.perf_counter()
        if self.prefill_s:
            self.decode_s += [(now - self._last) / len(answers)] * len(answers)
            for step in answers:
                self.kernels_s.append(max(rank["kernels_s"] for rank in step.values()))
                self.collectives_s.append(max(rank["collectives_s"] for rank in step.values()))
        elif all_have_begun:
            self.prefill_s = now - self._started
        self._last = now

    @property
    def steps_in_one_go(self) -> int:
        """How many steps ranks may make until the driver hears of them."""
        if not self.decode_s:
            return 1
        return max(1, min(MOST_STEPS, int(GO_S / self.decode_s[-1])))
