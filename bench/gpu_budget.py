"""The time of a bench, shared out: a part that has used up its own stops, and says what it left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """A piece of the bench and the share of the whole time that it may take."""

    name: str
    share: float


PARTS = (
    Part("checks", 0.2),
    Part("two ranks on one GPU", 0.1),
    Part("products", 0.2),
    Part("models", 0.5),
)


@dataclass
class Budget:
    """Seconds of each part; what one leaves unused goes to the next. `left_out` is for people."""

    minutes: float
    clock: Callable[[], float] = time.monotonic
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = self.clock()
        ends, total = {}, 0.0
        for part in PARTS:
            total += part.share
            ends[part.name] = self._began + 60 * self.minutes * total
        self._ends = ends

    def seconds_left(self, part: str) -> float:
        """How long the part may still take."""
        return self._ends[part] - self.clock()

    def items(
        self, part: str, work: Iterable[Item], describe: Callable[[Item], str]
    ) -> Iterator[Item]:
        """The items that are begun while there is time; the rest is noted as left out."""
        for item in work:
            if self.seconds_left(part) > 0:
                yield item
            else:
                self.left_out.append(f"{part}: {describe(item)}")
