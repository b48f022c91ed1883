"""Checked access to the fields of config.json: bounds in one place, all offenders in one error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from isobit.errors import DamagedError, InputError, Kind, NotSupportedError

from ..checkpoint.settings import shown

VALUE = "E-CONFIG-VALUE"
ROPE = "E-CONFIG-ROPE"

MOST_POSITIONS = 1 << 24
"""The longest published context has 10,485,760 positions."""

BOUNDS: dict[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 4096),
    "hidden_size": (1, 1 << 20),
    "intermediate_size": (1, 1 << 22),
    "num_attention_heads": (1, 1 << 14),
    "num_key_value_heads": (1, 1 << 14),
    "head_dim": (2, 1 << 14),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, MOST_POSITIONS),
    "original_max_position_embeddings": (2, MOST_POSITIONS),
    "sliding_window": (1, (1 << 31) - 1),
    "max_window_layers": (0, (1 << 31) - 1),
}
"""The least and the greatest of every integer, some ten times beyond any published model."""

_CLASSES: dict[Kind, type[InputError]] = {
    "damaged": DamagedError,
    "misused": InputError,
    "not-supported": NotSupportedError,
}
"""In the order in which they decide the class of an error that holds several offences."""


@dataclass(frozen=True, kw_only=True)
class Offence:
    kind: Kind
    code: str
    text: str


class ConfigFields:
    """The fields of a JSON object; a field of null counts as absent.

    A getter keeps what is wrong and returns a legal stand-in; `raise_if_any` then raises one error
    that names everything. `code` is that of its numbers; `where` is the file, and for nested
    settings the path to them.
    """

    def __init__(
        self,
        values: dict[str, Any],
        where: str = "config.json",
        code: str = VALUE,
        offences: list[Offence] | None = None,
    ) -> None:
        self.values, self.where, self._code = values, where, code
        self._offences: list[Offence] = [] if offences is None else offences

    def nested(self, key: str, code: str) -> ConfigFields:
        """The settings under a key, {} when it is absent; offences join those of this object."""
        values = self.values.get(key)
        if values is not None and not isinstance(values, dict):
            self.offence("damaged", code, f"{key} is {shown(values)}, expected a JSON object")
        inner = values if isinstance(values, dict) else {}
        return ConfigFields(inner, f"{self.where}: {key}", code, self._offences)

    def offence(self, kind: Kind, code: str, text: str) -> None:
        """Keep something that is wrong."""
        self._offences.append(Offence(kind=kind, code=code, text=f"{self.where}: {text}"))

    def raise_if_any(self) -> None:
        """Raise DamagedError, InputError or NotSupportedError, the worst kind found, with all."""
        for kind, error in _CLASSES.items():
            if found := [offence for offence in self._offences if offence.kind == kind]:
                lines = dict.fromkeys(offence.text for offence in self._offences)
                raise error(found[0].code, "\n".join(lines))

    @property
    def shared(self) -> list[Offence]:
        """The offences, for fields of the same object that are read under another code."""
        return self._offences

    @property
    def count(self) -> int:
        """How many offences there are so far."""
        return len(self._offences)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer within BOUNDS."""
        least, most = BOUNDS[key]
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._unlike(key, value, f"an integer from {least} to {most}")
            return least
        return value

    def number(
        self, key: str, default: float | None, least: float, most: float, above: bool = True
    ) -> float:
        """A finite number: more than `least`, or with `above` False at least it; at most `most`."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not is_number(value) or not (least < value or (not above and least == value)):
            self._unlike(key, value, _range(least, most, above))
            return most
        if value > most:
            self._unlike(key, value, _range(least, most, above))
            return most
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._unlike(key, value, "true or false")
            return default
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self._unlike(key, value, "a string")
            return default
        return value

    def _unlike(self, key: str, value: object, expected: str) -> None:
        found = "absent" if value is None and key not in self.values else f"{shown(value)}"
        self.offence("damaged", self._code, f"{key} is {found}, expected {expected}")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value from JSON is a finite number; integers beyond float's range are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _range(least: float, most: float, above: bool) -> str:
    return (
        f"a number above {least:g}, at most {most:g}"
        if above
        else (f"a number from {least:g} to {most:g}")
    )
