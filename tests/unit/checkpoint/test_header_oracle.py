"""Safetensors headers: what the library accepts is accepted, and what it refuses is refused."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, deserialize

from isobit.errors import InputError
from isobit.shard.checkpoint.safetensors_file import read_header

CASES = 3000
SIZES = {"F32": 4, "BF16": 2, "I8": 1, "U16": 2, "F8_E4M3": 1, "C64": 8, "BOOL": 1, "I64": 8}
ODD_NUMBERS = ("-1", "-0", "2.0", "1e2", "true", "null", '"4"', "18446744073709551616", "1" * 400)
ODD_VALUES = ("NaN", "1e400", '"\\ud800"', '"\\ud83d\\ude00"', "[" * 140 + "]" * 140, "[[1]]", "{}")


def good(draw: random.Random) -> tuple[list[list[Any]], int]:
    """Tensors [name, dtype, shape, [begin, end]] without holes, and how many bytes they have."""
    tensors, end = [], 0
    for number in range(draw.randrange(1, 5)):
        dtype = draw.choice(list(SIZES))
        shape = [draw.choice((0, 1, 2, 3)) for _ in range(draw.randrange(3))]
        size = SIZES[dtype]
        for length in shape:
            size *= length
        tensors.append([f"t{number}", dtype, shape, [end, end + size]])
        end += size
    draw.shuffle(tensors)
    return tensors, end


def text_of(tensors: list[list[Any]]) -> str:
    fields = (
        f'{json.dumps(name)}: {{"dtype": "{dtype}", "shape": {json.dumps(shape)}, '
        f'"data_offsets": {json.dumps(offsets)}}}'
        for name, dtype, shape, offsets in tensors
    )
    return "{" + ", ".join(fields) + "}"


def mutated(draw: random.Random) -> bytes:
    tensors, size = good(draw)
    which = draw.choice(tensors)
    text, length_off, kind = "", 0, draw.randrange(14)
    if kind == 0:
        which[3][draw.randrange(2)] += draw.choice((-1, 1, 4, -4))
    elif kind == 1:
        which[2].append(draw.choice((0, 1, 2, 1 << 40, 1 << 63)))
    elif kind == 2:
        which[1] = draw.choice((*SIZES, "F16", "I4", "f32", ""))
    elif kind == 3:
        size += draw.choice((-1, 1, 14000))
    elif kind == 4:
        gap = draw.choice((1, 8))
        for tensor in tensors:
            tensor[3] = [each + gap for each in tensor[3]]
        size += gap
    elif kind == 5:
        text = text_of(tensors).replace(str(which[3][1]), draw.choice(ODD_NUMBERS), 1)
    elif kind == 6:
        text = text_of(tensors)[:-2] + f', "more": {draw.choice(ODD_VALUES)}}}}}'
    elif kind == 7:
        meta = draw.choice(("5", "null", '{"a": "b"}', '{"a": 1}', '{"a": "b", "a": "c"}', '"x"'))
        text = f'{{"__metadata__": {meta}, ' + text_of(tensors)[1:]
    elif kind == 8:
        text = draw.choice((" ", "\ufeff", "\n")) + text_of(tensors) + draw.choice(("", "  ", "\0"))
    elif kind == 9:
        length_off = draw.choice((-1, 1, 8, 1 << 40))
    elif kind == 10:
        which[3] = list(draw.choice(tensors)[3])
    elif kind == 11:
        which[0] = draw.choice(("", "a\0b", "\u202e", "__metadata__", "x" * 300))
    elif kind == 12:
        text = text_of(tensors)
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice('{}[]",:09 x') + text[at + 1 :]
    header = (text or text_of(tensors)).encode()
    length = (len(header) + length_off) % (1 << 64)
    return length.to_bytes(8, "little") + header + os.urandom(max(0, size))


def named_twice(data: bytes) -> bool:
    """The library takes the last of two descriptions of a name; that loses one, and is refused."""
    length = int.from_bytes(data[:8], "little")
    found = []
    json.loads(data[8 : 8 + length], object_pairs_hook=lambda pairs: found.append(pairs))
    return any(len(dict(pairs)) < len(pairs) for pairs in found)


def test_mutated_headers_are_accepted_as_by_the_library(tmp_path: Path) -> None:
    path, draw = tmp_path / "x.safetensors", random.Random(1)
    verdicts = {True: 0, False: 0}
    for case in range(CASES):
        data = mutated(draw)
        path.write_bytes(data)
        try:
            library = {name: tuple(info["shape"]) for name, info in deserialize(data)}
        except SafetensorError:
            library = None
        try:
            ours = {entry.name: entry.shape for entry in read_header(path)}
        except InputError:
            ours = None
        if ours is None and library is not None and named_twice(data):
            continue
        assert ours == library, (case, data[:400])
        verdicts[ours is not None] += 1
    assert min(verdicts.values()) > CASES / 10


@pytest.mark.parametrize(
    ("header", "code", "kind"),
    [
        ('{"a": %s, "a": %s}', "E-CKPT-HEADER", "damaged"),
        ('{"a": ["F32", [2], [0, 8]]}', "E-CKPT-HEADER", "damaged"),
        ('{"a": {"dtype": {"F32": null}, "shape": [2], "data_offsets": [0, 8]}}',
         "E-CKPT-HEADER", "damaged"),
        ('{"a": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}',
         "E-CKPT-HEADER", "not-supported"),
    ],
)  # fmt: skip
def test_what_the_library_takes_and_isobit_refuses(tmp_path, error_of, header, code, kind):
    good = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    text = header.replace("%s", good).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    assert deserialize(data)
    (tmp_path / "x.safetensors").write_bytes(data)
    error = error_of(read_header, tmp_path / "x.safetensors")
    assert (error.code, error.kind) == (code, kind)
