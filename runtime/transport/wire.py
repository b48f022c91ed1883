"""What a message between the driver and a rank is: one msgpack map of bounded size."""

from __future__ import annotations

from typing import Any

import msgpack

MOST_MESSAGE_BYTES = 256 << 20
# Paths that are no UTF-8 hold halves of characters.
SURROGATES = "surrogatepass"


def encode(message: dict[str, Any]) -> bytes:
    """Return the msgpack bytes of a map of numbers, strings, bytes, lists and maps."""
    data = msgpack.packb(message, unicode_errors=SURROGATES)
    assert data is not None
    return data


def decode(data: bytes) -> dict[str, Any]:
    """Inverse of encode. Raises ValueError for anything but one map within the size limit."""
    if len(data) > MOST_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes, more than {MOST_MESSAGE_BYTES} allowed")
    try:
        message = msgpack.unpackb(data, unicode_errors=SURROGATES)
    except (msgpack.exceptions.UnpackException, ValueError, RecursionError) as error:
        raise ValueError(f"not a message: {error}") from error
    if not isinstance(message, dict):
        raise ValueError(f"expected a map, found {type(message).__name__}")
    return message
