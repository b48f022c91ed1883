"""Checked access to the fields of a quantization_config; unknown ones are named, never guessed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from ...kernels.errors import InputError
from ..quantization import CHANNEL

log = logging.getLogger("isobit.shard")


def warn_unknown(method: str, settings: dict[str, Any], known: Collection[str]) -> None:
    """Name the fields that this version of isobit does not know; they are not used.

    An empty field asks for nothing.
    """
    for field in sorted(f for f in set(settings) - set(known) if settings[f] not in (None, {}, [])):
        log.warning(
            "quantization_config (%s): field %r = %r is not known and not used",
            method,
            field,
            settings[field],
        )


def group_size(method: str, settings: dict[str, Any]) -> int:
    """Return group_size, -1 for one group per output row; raises InputError E-QUANT-SCHEME."""
    size = settings.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or (size <= 0 and size != CHANNEL):
        raise InputError(
            "E-QUANT-SCHEME", f"{method}: group_size is {size!r}, expected a positive integer or -1"
        )
    return size


def bits(method: str, settings: dict[str, Any], allowed: Collection[int]) -> int:
    """Return bits; raises InputError E-QUANT-SCHEME."""
    value = settings.get("bits")
    if not isinstance(value, int) or value not in allowed:
        raise InputError(
            "E-QUANT-SCHEME",
            f"{method}: {value!r} bits are not read, only {' and '.join(map(str, allowed))}. "
            "Quantize the original model again with one of these",
        )
    return value
