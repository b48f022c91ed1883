"""Checked access to the fields of a quantization_config; unknown ones are named, never guessed.

In a getter `where` names what the field belongs to: a method, or a group of settings. A field of
null counts as absent. What is of another type raises InputError E-QUANT-SCHEME.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Any

from ...kernels.errors import InputError
from ..quantization import CHANNEL

log = logging.getLogger("isobit.shard")


def warn_unknown(
    method: str, settings: dict[str, Any], known: Collection[str], where: str = ""
) -> None:
    """Name the fields that this version of isobit does not know; they are not used.

    An empty field asks for nothing. `where` is the path of nested settings, with a dot at its end.
    """
    for field in sorted(f for f in set(settings) - set(known) if settings[f] not in (None, {}, [])):
        log.warning(
            "quantization_config (%s): field %r = %r is not known and not used",
            method,
            where + field,
            settings[field],
        )


def mapping(where: str, settings: dict[str, Any], field: str) -> dict[str, Any]:
    """Return a field that holds settings of its own, {} when it is absent."""
    value = settings.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _unlike(where, field, value, "a map (JSON object)")
    return value


def strings(where: str, settings: dict[str, Any], field: str) -> tuple[str, ...]:
    """Return a list of names, () when it is absent."""
    value = settings.get(field)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _unlike(where, field, value, "a list of strings that are not empty")
    return tuple(value)


def targets(where: str, settings: dict[str, Any], field: str) -> tuple[str, ...]:
    """Return a list of names and "re:" patterns, () when it is absent."""
    names = strings(where, settings, field)
    for name in names:
        if name.startswith("re:"):
            pattern(f"{where}: {field}", name[3:])
    return names


def pattern(where: str, expression: str) -> str:
    """Return a regular expression that compiles."""
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            "E-QUANT-SCHEME",
            f"{where}: {expression!r} is not a regular expression ({error}), expected one that "
            "Python compiles",
        ) from error
    return expression


def flag(where: str, settings: dict[str, Any], field: str, default: bool) -> bool:
    """Return true or false."""
    value = settings.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _unlike(where, field, value, "true or false")
    return value


def text(where: str, settings: dict[str, Any], field: str) -> str | None:
    """Return a string, None when it is absent or empty."""
    value = settings.get(field)
    if value is not None and not isinstance(value, str):
        raise _unlike(where, field, value, "a string")
    return value or None


def group_size(method: str, settings: dict[str, Any]) -> int:
    """Return group_size, -1 for one group per output row."""
    size = settings.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or (size <= 0 and size != CHANNEL):
        raise _unlike(method, "group_size", size, "a positive integer or -1")
    return size


def bits(method: str, settings: dict[str, Any], allowed: Collection[int]) -> int:
    """Return bits."""
    value = settings.get("bits")
    if not isinstance(value, int) or value not in allowed:
        raise InputError(
            "E-QUANT-SCHEME",
            f"{method}: {value!r} bits are not read, only {' and '.join(map(str, allowed))}. "
            "Quantize the original model again with one of these",
        )
    return value


def _unlike(where: str, field: str, value: object, expected: str) -> InputError:
    return InputError("E-QUANT-SCHEME", f"{where}: {field} is {value!r}, expected {expected}")
