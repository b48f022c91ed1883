"""Arguments that are refused by name, never ignored."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Any

from isobit.errors import InputError, NotSupportedError

CODE = "E-ARGUMENT"


def refuse_others(
    what: str,
    takes: Callable[..., Any],
    others: Mapping[str, Any],
    neutral: Mapping[str, tuple[Any, ...]],
) -> None:
    """Refuse `others`, which `takes` has no parameters for: as unknown, or, where `neutral` has the
    name, as not built unless the value changes nothing. Raises as the two functions below."""
    own = {
        name
        for name, parameter in signature(takes).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD and name != "self"
    }
    refuse_unknown(what, (name for name in others if name not in neutral), own | neutral.keys())
    refuse_unbuilt(what, others, neutral)


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError E-ARGUMENT that names every unknown argument and the name nearest to it."""
    names = sorted(known)
    lines = []
    for name in given:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        lines.append(f"{name}: no such argument{meant}")
    if lines:
        raise InputError(CODE, f"{what}: " + "\n".join(lines))


def refuse_unbuilt(
    what: str, given: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raise NotSupportedError E-ARGUMENT that names every argument of vLLM's that isobit does not
    have and that is set to anything but a value that changes nothing."""
    lines = [
        f"{name}={given[name]!r}"
        for name, values in neutral.items()
        if name in given and not any(given[name] is v or given[name] == v for v in values)
    ]
    if lines:
        raise NotSupportedError(CODE, f"{what}: isobit does not have\n" + "\n".join(lines))
