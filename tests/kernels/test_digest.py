"""Digests see every bit and the order of words; equal bytes agree wherever they lie."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isobit.kernels import ops


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_flipped_bit_changes_the_digest(content: bytes, data: st.DataObject) -> None:
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    before = ops.digest(tensor)
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    tensor[place // 8] ^= 1 << place % 8
    assert ops.digest(tensor) != before


def test_length_order_and_seed_count() -> None:
    words = torch.arange(64)
    digests = {
        ops.digest(words),
        ops.digest(words.flip(0)),
        ops.digest(words[:-1]),
        ops.digest(torch.cat([words, torch.zeros(1, dtype=torch.int64)])),
        ops.digest(words, seed=1),
        ops.digest(words[:0]),
    }
    assert len(digests) == 6


def test_strides_and_addresses_do_not_count() -> None:
    table = torch.randn(33, 20)
    assert ops.digest(table.T) == ops.digest(table.T.contiguous())
    assert ops.digest(table[1:]) == ops.digest(table[1:].clone())
