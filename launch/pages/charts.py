"""Where the lines of a chart lie; `chart.html.j2` draws it as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
TICKS = 4

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values at x = 0, 1, 2 …; None leaves a gap. `style` is a class of base.html.j2."""

    style: str
    values: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points that are joined; one alone is a dot."""

    style: str
    points: Points

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Sizes in units of the viewBox. `rules` are (y, text), `marks` (x, text)."""

    rules: list[tuple[float, str]]
    marks: list[tuple[float, str]]
    lines: list[Line]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The values at the left edge, which `text` writes, from the lowest to the highest."""

    rules: list[float]
    logarithmic: bool
    text: Callable[[float], str]

    def shows(self, value: float | None) -> TypeGuard[float]:
        """Whether a value can be drawn: one of 0 or less has no logarithm."""
        return value is not None and (value > 0 or not self.logarithmic)

    def share(self, value: float) -> float:
        """Where a value lies between the lowest and the highest rule, as a share."""
        scale = math.log10 if self.logarithmic else float
        low, high = scale(self.rules[0]), scale(self.rules[-1])
        return (scale(value) - low) / (high - low) if high > low else 0.5


def axis_for(
    series: Iterable[Series], logarithmic: bool, text: Callable[[float], str]
) -> Axis | None:
    """An axis that holds several series; None when they have nothing to draw."""
    axis = Axis(rules=[], logarithmic=logarithmic, text=text)
    values = [value for each in series for value in each.values if axis.shows(value)]
    if not values:
        return None
    rules = (_decades if logarithmic else _round_steps)(min(values), max(values))
    return replace(axis, rules=rules)


def line_chart(series: Sequence[Series], axis: Axis) -> Chart:
    """A chart of series over their index; what an axis cannot show leaves a gap."""
    count = max(len(each.values) for each in series)

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * axis.share(value)

    lines: list[Line] = []
    for each in series:
        points: Points = []
        for index, value in enumerate([*each.values, None]):
            if axis.shows(value):
                points.append((x(index), y(value)))
            elif points:
                lines.append(Line(style=each.style, points=points))
                points = []
    return Chart(
        rules=[(y(value), axis.text(value)) for value in axis.rules],
        marks=[(x(index), str(index)) for index in sorted({0, count // 2, count - 1})],
        lines=lines,
    )


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten around two numbers, thinned out to few; 1, 2, 5 of them where they are near."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 1:
        fine = [10.0**first * factor for factor in (1, 2, 5, 10)]
        below = max((v for v in fine if v <= low), default=fine[0])
        above = min((v for v in fine if v >= high), default=fine[-1])
        return [value for value in fine if below <= value <= above]
    step = math.ceil((last - first) / TICKS)
    return [10.0**power for power in range(first, last + step, step)]


def _round_steps(low: float, high: float) -> list[float]:
    """Round numbers from at most the low to at least the high one."""
    span = (high - low) or abs(high) or 1.0
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step)
    return [step * index for index in range(first, math.ceil(high / step - 1e-9) + 1)]
