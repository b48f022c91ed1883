"""Words of a checkpoint laid out by the compiled module: the same bits as codes packed in torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.kernels.weights import layout, tiles
from isobit.kernels.weights.finite import all_finite

AWQ = (0, 4, 1, 5, 2, 6, 3, 7)
FORMS = ("rows of words", "columns of words", "words along N")


def words_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words of codes [a, b] along b, which fills them."""
    per = 32 // bits
    wide = codes.long().view(len(codes), codes.shape[1] // per, per)
    words = (wide << (torch.arange(per) * bits)).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def stored(
    codes: torch.Tensor, bits: int, form: str, rows: torch.Tensor, columns: torch.Tensor
) -> layout.StoredCodes:
    """Rows and columns of codes [N, K], stored in one of FORMS."""
    if form == "rows of words":
        words, rows_first = words_of(codes[rows], bits), torch.arange(len(rows))
        return layout.StoredCodes(
            bits=bits, k_first=False, along_k=True, rows=rows_first, columns=columns,
            read=lambda begin, end: words[begin:end],
        )  # fmt: skip
    if form == "columns of words":
        words = words_of(codes, bits).T
        return layout.StoredCodes(
            bits=bits, k_first=True, along_k=True, rows=rows, columns=columns,
            read=lambda begin, end: words[begin:end],
        )  # fmt: skip
    place = torch.tensor(AWQ).argsort()
    ordered = codes.T.reshape(codes.shape[1], -1, 8)[:, :, place].reshape(codes.shape[1], -1)
    words = words_of(ordered, 4)
    return layout.StoredCodes(
        bits=4, k_first=True, along_k=False, rows=rows, columns=columns, nibbles=AWQ,
        read=lambda begin, end: words[begin:end],
    )  # fmt: skip


@st.composite
def some(draw: st.DrawFn, length: int) -> torch.Tensor:
    """A stretch of 0..length-1, or a few of them in any order."""
    if draw(st.booleans()):
        first, last = sorted(draw(st.tuples(*[st.integers(0, length)] * 2)))
        return torch.arange(first, last)
    chosen = draw(st.lists(st.integers(0, length - 1), unique=True, max_size=length))
    return torch.tensor(chosen, dtype=torch.int64)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), form=st.sampled_from(FORMS), bits=st.sampled_from([4, 8]))
def test_the_same_bits_as_in_torch(data: st.DataObject, form: str, bits: int) -> None:
    bits = 4 if form == "words along N" else bits
    n, k = 8 * data.draw(st.integers(1, 6)), 8 * data.draw(st.integers(1, 9))
    whole = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    rows, columns = data.draw(some(n)), data.draw(some(k))
    if form == "words along N":
        columns = torch.arange(k)
    given_codes = stored(whole, bits, form, rows, columns)
    codes = whole[rows][:, columns]
    assert torch.equal(given_codes.codes(), codes)

    # The plan's padding: features beyond those stored, in runs of their own.
    padded_n, padded_k = len(rows) + data.draw(st.integers(0, 20)), len(columns)
    edges = sorted({0, padded_k, *data.draw(st.lists(st.integers(0, padded_k), max_size=4))})
    runs = list(itertools.pairwise(edges))
    added = data.draw(st.integers(0, 20))
    if added:
        runs.append((padded_k, padded_k + added))
    zeros = None
    table = torch.full((padded_n, len(runs)), 2 ** (bits - 1), dtype=torch.uint8)
    if data.draw(st.booleans()):
        zeros = table
        real = len(runs) - bool(added)
        zeros[: len(rows), :real] = torch.randint(0, 2**bits, (len(rows), real), dtype=torch.uint8)
    grown = torch.full((padded_n, padded_k + added), 2 ** (bits - 1), dtype=torch.uint8)
    grown[: len(rows), :padded_k] = codes
    scales = torch.rand(padded_n, len(runs))
    order = torch.randperm(padded_k + added) if data.draw(st.booleans()) else None
    if order is not None and zeros is not None:
        zeros[:] = zeros[:, :1]
        grown[: len(rows), padded_k:] = zeros[: len(rows), :1]
    common: dict = {"runs": runs, "segments": [0, len(runs)], "order": order}
    expected = layout.pack_quantized(grown, scales, zeros, bits=bits, **common)
    for part_bytes in (1, 200, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "PART_BYTES", part_bytes)
            found = layout.pack_stored(given_codes, scales, zeros, k=padded_k + added, **common)
        for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("part_bytes", [1, 1 << 20])
def test_dense_rows_are_laid_out_as_in_torch(
    dtype: torch.dtype, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "PART_BYTES", part_bytes)
    values = torch.randn(37, 24).to(dtype)
    for segments in ([0, 24], [0, 10, 24], [0, 7, 7, 24]):
        weight = layout.pack_dense(values, segments=segments)
        assert torch.equal(layout.unpack(weight)[0], values)
        odd = layout.pack_dense(values[:, :23], segments=[*segments[:-1], 23])
        assert torch.equal(layout.unpack(odd)[0], values[:, :23])


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.T, lambda x: x[:, 1:]])
def test_one_number_that_is_not_finite(
    dtype: torch.dtype, view: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    values = torch.randn(130, 131).to(dtype)
    values[3, 4] = torch.finfo(dtype).max
    assert all_finite(view(values))
    for number in (torch.nan, torch.inf, -torch.inf):
        for row, column in ((0, 1), (129, 130), (70, 2)):
            broken = values.clone()
            broken[row, column] = number
            assert not all_finite(view(broken))
    assert all_finite(values[:0])
