"""Checked access to the fields of a quantization_config; unknown ones are named, never guessed.

In a getter `where` names what the field belongs to: a method, or a group of settings. A field of
null counts as absent. What is of another type, or beyond any sense, raises DamagedError
E-QUANT-SCHEME.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any, ParamSpec, TypeVar

from isobit.errors import DamagedError, InputError, NotSupportedError

from ..patterns import check_pattern, shown
from .scheme import CHANNEL, Targets

log = logging.getLogger("isobit.shard")

MOST_DEPTH = 16
MOST_GROUPS = 256
MOST_NAMES = 1 << 14
MOST_PATTERNS = 1024
MOST_GROUP_SIZE = 1 << 24
MOST_BITS = 16
_MOST_LINES = 20
P = ParamSpec("P")
T = TypeVar("T")


class Problems:
    """What is wrong with one config, gathered so that one error names all of it."""

    def __init__(self) -> None:
        self._found: list[InputError] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, error: InputError) -> None:
        self._found.append(error)

    def get(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `read` returns; None after it raised, which is noted."""
        try:
            return read(*args, **kwargs)
        except InputError as error:
            self._found.append(error)
            return None

    def raise_all(self) -> None:
        """Raise one error for all: of the class of the gravest, and with its code."""
        if not self._found:
            return
        if len(self._found) == 1:
            raise self._found[0]
        damaged = [error for error in self._found if isinstance(error, DamagedError)]
        gravest = (damaged or self._found)[0]
        lines = dict.fromkeys(line for e in self._found for line in _lines(e))
        shown_lines = list(lines)[:_MOST_LINES]
        if len(lines) > _MOST_LINES:
            shown_lines.append(f"and {len(lines) - _MOST_LINES} more")
        raise type(gravest)(gravest.code, f"{_TITLE}\n  " + "\n  ".join(shown_lines)) from gravest


_TITLE = "quantization_config:"


def _lines(error: InputError) -> list[str]:
    return [line.strip() for line in error.message.removeprefix(_TITLE).strip().splitlines()]


def check_depth(settings: dict[str, Any]) -> None:
    """Refuse settings that are nested deeper than any writer nests them."""
    level: list[Any] = [settings]
    for _ in range(MOST_DEPTH):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise DamagedError(
        "E-QUANT-SCHEME", f"quantization_config is nested deeper than {MOST_DEPTH} levels"
    )


def check_count(where: str, what: str, count: int, most: int) -> None:
    """Raise NotSupportedError E-QUANT-SCHEME for more of something than any model needs."""
    if count > most:
        raise NotSupportedError("E-QUANT-SCHEME", f"{where}: {count} {what}, supported are {most}")


def warn_unknown(
    method: str, settings: dict[str, Any], known: Collection[str], where: str = ""
) -> None:
    """Name the fields that this version of isobit does not know; they are not used.

    An empty field asks for nothing. `where` is the path of nested settings, with a dot at its end.
    """
    for field in sorted(f for f in set(settings) - set(known) if settings[f] not in (None, {}, [])):
        log.warning(
            "quantization_config (%s): field %r = %.80r is not known and not used",
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
        raise unlike(where, field, value, "a map (JSON object)")
    return value


def strings(where: str, settings: dict[str, Any], field: str) -> tuple[str, ...]:
    """Return a list of names, () when it is absent."""
    value = settings.get(field)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise unlike(where, field, value, "a list of strings that are not empty")
    return tuple(value)


def names_and_patterns(where: str, names: Iterable[str]) -> Targets:
    """Targets as compressed-tensors writes them: a full name, a class, or "re:" and a pattern."""
    names, problems = tuple(names), Problems()
    patterns = [name.removeprefix("re:") for name in names if name.startswith("re:")]
    check_count(where, "patterns", len(patterns), MOST_PATTERNS)
    for pattern in patterns:
        problems.get(check_pattern, where, pattern)
    problems.raise_all()
    plain = frozenset(name for name in names if not name.startswith("re:"))
    return Targets(names=plain, classes=plain, patterns=tuple(patterns))


def flag(where: str, settings: dict[str, Any], field: str, default: bool) -> bool:
    """Return true or false."""
    value = settings.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise unlike(where, field, value, "true or false")
    return value


def text(where: str, settings: dict[str, Any], field: str) -> str | None:
    """Return a string, None when it is absent or empty."""
    value = settings.get(field)
    if value is not None and not isinstance(value, str):
        raise unlike(where, field, value, "a string")
    return value or None


def is_whole(value: object) -> bool:
    """Whether a value is an integer; JSON's true and 4.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def group_size(where: str, settings: dict[str, Any]) -> int:
    """Return group_size, -1 for one group per output row."""
    size = settings.get("group_size")
    if not isinstance(size, int) or isinstance(size, bool):
        raise unlike(where, "group_size", size, "a positive integer or -1")
    if not 0 < size <= MOST_GROUP_SIZE and size != CHANNEL:
        expected = f"a positive integer up to {MOST_GROUP_SIZE}, or -1"
        raise unlike(where, "group_size", size, expected)
    return size


def bits(
    where: str, settings: dict[str, Any], allowed: Collection[int], field: str = "bits"
) -> int:
    """Return a number of bits.

    Raises NotSupportedError E-QUANT-SCHEME for a width that other programs read.
    """
    value = settings.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST_BITS:
        raise unlike(where, field, value, " or ".join(map(str, allowed)))
    if value not in allowed:
        raise NotSupportedError(
            "E-QUANT-SCHEME",
            f"{where}: {value} bits are not read, only {' and '.join(map(str, allowed))}. "
            "Quantize the original model again with one of these",
        )
    return value


def unlike(where: str, field: str, value: object, expected: str) -> DamagedError:
    """The error for a field whose value makes no sense."""
    return DamagedError(
        "E-QUANT-SCHEME", f"{where}: {field} is {shown(value)}, expected {expected}"
    )
