"""The header of a safetensors file: what the safetensors library accepts, and nothing else.

Format: 8 bytes little-endian length of the header, the header as JSON, then the data. See
https://github.com/huggingface/safetensors#format. The library's parser (serde_json) is stricter
than Python's: no NaN, no number beyond a double, no lone surrogate, no nesting beyond 127.
Refused here and not there, since no writer makes them: two descriptions of one tensor (the library
takes the last), a description that is an array, and more than MOST_TENSORS tensors in a file.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.errors import DamagedError, InputError, NotSupportedError

MOST_HEADER_BYTES = 100_000_000
MOST_TENSORS = 100_000
MOST_NESTING = 127
MOST_SHOWN = 20
LARGEST = 2**64 - 1
METADATA = "__metadata__"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Span = tuple[int, int, str]
"""Begin and end of a tensor's data, and its name."""


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that the system does not take names none."""
    try:
        return path.is_file()
    except OSError:
        return False


def open_regular(path: Path) -> int:
    """Open a file for reading; raises InputError E-CKPT-MISSING for a pipe, a device, a folder.

    Opening never waits: a pipe that nobody writes to would otherwise hang here.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _not_regular(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise _not_regular(path)
    except OSError as error:
        raise InputError("E-CKPT-MISSING", f"{path}: cannot be read ({error.strerror})") from error


def _not_regular(path: Path) -> InputError:
    return InputError("E-CKPT-MISSING", f"{path}: cannot be read (not a regular file)")


def read_fields(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return what a header says of each tensor, where the data begin, and the size of the file.

    Raises InputError E-CKPT-MISSING, DamagedError E-CKPT-TRUNCATED and E-CKPT-HEADER,
    NotSupportedError E-CKPT-HEADER for too many tensors.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise DamagedError(
                "E-CKPT-TRUNCATED",
                f"{path}: the file has {size} bytes and its header alone claims {8 + length}. "
                "The download did not finish, or this is not a safetensors file",
            )
        if length > MOST_HEADER_BYTES:
            raise DamagedError(
                "E-CKPT-HEADER",
                f"{path}: a header of {length} bytes, more than {MOST_HEADER_BYTES} allowed",
            )
        text = file.read(length)
    if (tensors := text.count(b'"dtype"')) > MOST_TENSORS:
        raise NotSupportedError(
            "E-CKPT-HEADER", f"{path}: {tensors} tensors in one file, at most {MOST_TENSORS}"
        )
    try:
        return _parsed(text), 8 + length, size
    except (ValueError, RecursionError) as error:
        raise DamagedError("E-CKPT-HEADER", f"{path}: the header is not valid: {error}") from error


def _parsed(text: bytes) -> dict[str, Any]:
    """Parse a header; raises ValueError for what the library refuses, and RecursionError."""
    header = json.loads(
        text.decode("utf-8"),
        object_pairs_hook=_unique,
        parse_constant=_refused,
        parse_float=_finite,
        parse_int=_integer,
    )
    if not isinstance(header, dict):
        raise ValueError("not a JSON object")
    if _SURROGATE.search(text):
        # Escapes in pairs are one character by now; what is left alone is none.
        json.dumps(header, ensure_ascii=False).encode("utf-8")
    metadata = header.pop(METADATA, None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(each, str) for each in metadata.values())
    ):
        raise ValueError(f"{METADATA} is {str(metadata)[:80]}, expected a map of strings")
    for name, fields in header.items():
        if isinstance(fields, dict) and len(fields) > 3 and _depth(fields) >= MOST_NESTING:
            raise ValueError(f"{name}: nested more than {MOST_NESTING} deep")
    return header


class _Repeated(dict[str, Any]):
    """A map in which a name comes twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = [name for name, _ in pairs if name in seen or seen.add(name)]
        if not all(isinstance(value, str) for _, value in pairs):
            raise ValueError(f"{twice[0]!r} comes twice")
        # Strings alone may be metadata, where the library takes the last.
        return _Repeated(found)
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def _integer(text: str) -> int | float:
    if text == "-0":
        return -0.0
    number = int(text)
    if number.bit_length() > 1024:
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def _depth(value: object) -> int:
    """How deep maps and lists are nested."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [
            inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def described(fields: object) -> tuple[str, list[int], int, int]:
    """Dtype, shape, begin and end as a header has them.

    Raises ValueError for what describes no tensor.
    """
    wanted = f"expected dtype, shape and data_offsets, found {str(fields)[:80]}"
    if not isinstance(fields, dict) or isinstance(fields, _Repeated):
        raise ValueError(wanted)
    try:
        dtype, shape = fields["dtype"], fields["shape"]
        begin, end = fields["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(wanted) from None
    if not isinstance(fields["data_offsets"], list):
        raise ValueError(wanted)
    numbers = [begin, end, *(shape if isinstance(shape, list) else [-1])]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= LARGEST:
            raise ValueError(
                f"shape {str(shape)[:80]} and data_offsets {str([begin, end])[:80]} must be "
                "non-negative integers"
            )
    if not isinstance(dtype, str):
        raise ValueError(f"dtype {str(dtype)[:80]!r} is not supported")
    return dtype, shape, begin, end


def element_count(shape: Sequence[int]) -> int:
    """The product of a shape; raises ValueError where the library's 64 bits would not hold it."""
    count = 1
    for size in shape:
        count *= size
        if count > LARGEST:
            raise ValueError(f"shape {str(list(shape))[:80]} has more than 2^64 elements")
    return count


def layout_errors(path: Path, spans: list[Span], data_bytes: int) -> list[InputError]:
    """Tensors must follow each other without a hole and fill the data of the file to its end.

    Raises nothing: returns DamagedError E-CKPT-OVERLAP and E-CKPT-LAYOUT. Data that the file lacks
    are not told here.
    """
    reach, before = 0, "the header"
    overlaps, holes, errors = [], [], []
    for begin, end, name in sorted(spans):
        if begin < reach:
            overlaps.append(f"{before} and {name} from byte {begin} of the data")
        elif begin > reach:
            holes.append(
                f"{begin - reach} bytes between {before} and {name}, from byte {reach} of the data"
            )
        if end >= reach:
            reach, before = end, name
    if data_bytes > reach:
        holes.append(f"{data_bytes - reach} bytes behind {before}")
    if overlaps:
        errors.append(
            DamagedError(
                "E-CKPT-OVERLAP",
                f"{path}: tensors share bytes of the file, so one of them is not what it says"
                f"{listed(overlaps)}",
            )
        )
    if holes:
        errors.append(
            DamagedError(
                "E-CKPT-LAYOUT",
                f"{path}: bytes that belong to no tensor, which the safetensors library refuses"
                f"{listed(holes)}",
            )
        )
    return errors


def listed(lines: list[str]) -> str:
    """Lines below a heading, the first of them when there are many."""
    rest = f"\n  and {len(lines) - MOST_SHOWN} more" if len(lines) > MOST_SHOWN else ""
    return "".join(f"\n  {line}" for line in lines[:MOST_SHOWN]) + rest
