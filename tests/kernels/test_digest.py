"""Digests see every bit and the order of words; equal bytes agree wherever they lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.errors import InputError
from isobit.kernels import ops


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_flipped_bit_changes_the_digest(content: bytes, data: st.DataObject) -> None:
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    before = ops.digest(tensor)
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    tensor[place // 8] ^= 1 << place % 8
    assert ops.digest(tensor) != before


def by_hand(content: bytes, seed: int) -> int:
    """Eight chains over the words, the last ones filled up with zeros, then one over the chains."""

    def mix(state: int, word: int) -> int:
        state = (state ^ word) * 0x9E3779B97F4A7C15 % 2**64
        return state ^ state >> 29

    other = 0xC2B2AE3D27D4EB4F
    chains = [(seed + other * (i + 1)) % 2**64 for i in range(8)]
    filled = content + bytes(64 - len(content) % 64)
    for at in range(0, len(filled), 8):
        chain = at // 8 % 8
        chains[chain] = mix(chains[chain], int.from_bytes(filled[at : at + 8], "little"))
    whole = mix(seed, len(content))
    for chain in chains:
        whole = mix(whole, chain)
    return mix(whole, other)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("seed", [0, 3, 2**63])
@pytest.mark.usefixtures("isa")
def test_every_instruction_set_gives_the_digest_that_is_written_down(size: int, seed: int) -> None:
    content = torch.randint(256, (size + 1,), dtype=torch.uint8)[1:]  # not on a word
    assert ops.digest(content, seed) == by_hand(bytes(content.tolist()), seed)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_outcome_is_what_the_ops_say_one_by_one(rows: int, threads: int) -> None:
    ops.set_threads(threads)
    tensors = [torch.randn(rows, 20), torch.randn(4, 33).bfloat16()]
    logits = torch.randn(rows, 1000)
    outcome = ops.Outcome(tensors, logits)
    for _ in range(2):
        found = [ops.digest(tensor) for tensor in (*tensors, *logits)]
        assert outcome.read(True) == (ops.greatest(logits), found)
        assert outcome.read(False) == (ops.greatest(logits), [])
        logits.mul_(-1)


def test_an_outcome_of_what_does_not_lie_in_one_piece_is_refused() -> None:
    with pytest.raises(InputError, match="E-KERNEL-SHAPE") as caught:
        ops.Outcome([torch.zeros(4, 4).T], torch.zeros(2, 6).T)
    assert "tensor 0" in str(caught.value) and "rows" in str(caught.value)


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
