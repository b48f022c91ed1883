"""What a check measured, of any shape, as rows of a name and a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MOST_ROWS, MOST_LISTED, LONGEST = 60, 12, 300


def measured_facts(
    measured: Mapping[str, Any], command: str = "isobit doctor"
) -> list[tuple[str, str]]:
    """One row for each number or text; long lists are counted, and what is left out is told.

    `command` is what prints them all, with --json.
    """
    rows = list(_rows("", measured))
    if len(rows) > MOST_ROWS:
        left = len(rows) - MOST_ROWS
        return [*rows[:MOST_ROWS], (f"{left} more", f"{command} --json prints them all")]
    return rows


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _rows(f"{name} {key}".strip(), each)
        if not value and name:
            yield name, "none"
    elif isinstance(value, list | tuple):
        yield from _listed(name, value)
    else:
        yield name.replace("_", " "), _text(name, value)


def _listed(name: str, values: list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    nested = any(isinstance(each, Mapping | list | tuple) for each in values)
    if nested and len(values) <= MOST_LISTED:
        for number, each in enumerate(values):
            yield from _rows(f"{name} {number}", each)
        return
    text = ", ".join(_text("", each) for each in values[:MOST_LISTED]) or "none"
    if nested:
        text = f"{len(values)} entries"
    elif len(values) > MOST_LISTED:
        text += f" … ({len(values)})"
    yield name.replace("_", " "), text


def _text(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("bytes") and value >= 1024:
        return f"{value} ({value / 2**30:.1f} GiB)" if value >= 2**29 else str(value)
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
