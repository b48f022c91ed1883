"""Names of tensors in messages: those of one kind in one line, with the layers that they are in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

MOST_LINES = 12
MOST_LAYERS_NAMED = 4
_LAYER = re.compile(r"\.layers\.([0-9]{1,9})\.")


def family(name: str) -> str:
    """The name with its layer number as `*`: model.layers.*.mlp.up_proj.weight_scale."""
    return _LAYER.sub(".layers.*.", name, count=1)


def layer_of(name: str) -> int | None:
    """The layer that a tensor or module belongs to, None for one outside the layers."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def by_family(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped by family, in the order in which the families first occur."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(family(name), []).append(name)
    return families


def place(names: Sequence[str]) -> str:
    """One line for names of one family: the name, or the family and the layers in question."""
    if len(names) == 1:
        return names[0]
    layers = [number for name in names if (number := layer_of(name)) is not None]
    if len(layers) > MOST_LAYERS_NAMED:
        return f"{family(names[0])} ({len(layers)} layers)"
    return f"{family(names[0])} (layers {', '.join(map(str, sorted(layers)))})"


def places(names: Sequence[str]) -> str:
    """Where a finding holds: one place, or how many there are (its text then lists them)."""
    families = by_family(names)
    if len(families) == 1:
        return place(names)
    more = "" if len(names) == len(families) else f", {len(names)} in all"
    return f"{len(families)} places{more}"


def spread(
    names: Iterable[str],
    text: Callable[[list[str]], str] = lambda same: "",
    alone: bool = False,
) -> str:
    """What holds where: in line for one place, a list for several.

    One place is named too where nothing else does: `alone`.
    """
    families = list(by_family(names).values())
    if len(families) == 1 and not alone:
        only = text(families[0])
        return f": {only}" if only else ""
    return listed([": ".join(filter(None, (place(same), text(same)))) for same in families])


def plural(count: int, noun: str, many: str = "") -> str:
    """1 tensor, 2 tensors."""
    return f"{count} {noun}" if count == 1 else f"{count} {many or noun + 's'}"


def listed(lines: Sequence[str]) -> str:
    """Lines under a heading, the first of them when there are many."""
    rest = f"\n  and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    return "".join(f"\n  {line}" for line in lines[:MOST_LINES]) + rest
