"""The time of a bench, shared out: a part that has used up its own stops, and says what it left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A piece of the bench and the share of the whole time that it may take."""

    name: str
    share: float


PARTS = (Part("products", 0.35), Part("models", 0.65))


@dataclass
class Budget:
    """Seconds of each part; what one leaves unused goes to the next."""

    minutes: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        began, total = self.clock(), 0.0
        self._ends = {}
        for part in PARTS:
            total += part.share
            self._ends[part.name] = began + 60 * self.minutes * total

    def seconds_left(self, part: str) -> float:
        """How long the part may still take."""
        return self._ends[part] - self.clock()
