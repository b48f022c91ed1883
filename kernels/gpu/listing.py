"""The launches of one shape of a step, run one by one or as graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .card import Card
from .launch import Launch


@dataclass(frozen=True, kw_only=True)
class Call:
    """A Python function among launches. `capturable`: it does nothing but start work on the current
    stream, always the same, so that a graph may hold it."""

    function: Callable[[], None]
    capturable: bool
    first: Callable[[], None] | None = None
    """Does the same the first time, when other ranks may be late."""
    launches: Callable[[], Sequence[Launch]] = tuple
    """The kernels that it starts, to be compiled before."""

    def run(self) -> None:
        self.function()

    def run_first(self) -> None:
        (self.first or self.function)()


Item = Launch | Call


class Listing:
    """Items in order, over tensors that stay where they are."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = tuple(items)
        self._parts: list[Callable[[], None]] = [item.run for item in self.items]
        self._ran = self.captured = False

    def launches(self) -> Iterator[Launch]:
        """Every kernel that a run starts, those of calls included."""
        for item in self.items:
            if isinstance(item, Launch):
                yield item
            else:
                yield from item.launches()

    def run(self) -> None:
        """Run everything in order."""
        if not self._ran:
            self._ran = True
            for item in self.items:
                item.run() if isinstance(item, Launch) else item.run_first()
            return
        for part in self._parts:
            part()

    def capture(self, card: Card) -> None:
        """Make a graph of every stretch of items between calls that no graph can hold.

        Every item must have run before, so that nothing is compiled or set up meanwhile.
        """
        self._parts = []
        for held, stretch in groupby(self.items, key=_capturable):
            runs = [item.run for item in stretch]
            self._parts += [card.capture(_together(runs))] if held else runs
        self.captured = True


def _capturable(item: Item) -> bool:
    return isinstance(item, Launch) or item.capturable


def _together(runs: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for each in runs:
            each()

    return run
