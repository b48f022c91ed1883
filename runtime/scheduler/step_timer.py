"""How long the steps of a run take, and so how many of them the ranks make in one go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GO_S = 0.03
"""People see no delay in it, and a small model spares the work of a message for most steps."""
MOST_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """Seconds of one rank by its own clock, over the decode steps of a batch.

    `elapsed_s` is from the end of the step before the first to the end of the last, waiting for
    messages included; `kernels_s` and `collectives_s` (those that need no Python) are parts of it
    that do not overlap.
    """

    elapsed_s: float = 0.0
    kernels_s: float = 0.0
    collectives_s: float = 0.0

    @property
    def kernels_share(self) -> float:
        return self.kernels_s / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def collectives_share(self) -> float:
        return self.collectives_s / self.elapsed_s if self.elapsed_s else 0.0


NAMES = ("elapsed_s", "kernels_s", "collectives_s")


def added(times: Iterable[RankTimes | Mapping[str, Any]]) -> RankTimes:
    """The sums of times, or of the fields of answers to steps."""
    fields = [each if isinstance(each, Mapping) else vars(each) for each in times]
    return RankTimes(**{name: sum(each[name] for each in fields) for name in NAMES})


class Pace:
    """Times of one batch in seconds, from its beginning on."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self.prefill_s = 0.0
        """Until every request had its first token."""
        self.decode_s: list[float] = []
        """Of each step after that; the steps of one go share its time."""
        self.ranks: dict[int, RankTimes] = {}
        """Of each rank, over the steps of `decode_s`."""

    def add(self, answers: Sequence[Mapping[int, Mapping[str, Any]]], all_have_begun: bool) -> None:
        """Note the answers, by rank, to steps that were made in one go and have just come in."""
        now = time.perf_counter()
        if self.prefill_s:
            self.decode_s += [(now - self._last) / len(answers)] * len(answers)
            for rank in answers[0]:
                before = self.ranks.get(rank, RankTimes())
                self.ranks[rank] = added([before, *(step[rank] for step in answers)])
        elif all_have_begun:
            self.prefill_s = now - self._started
        self._last = now

    @property
    def steps_in_one_go(self) -> int:
        """How many steps ranks may make until the driver hears of them."""
        if not self.decode_s:
            return 1
        return max(1, min(MOST_STEPS, int(GO_S / self.decode_s[-1])))
