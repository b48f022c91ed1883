"""Packing is exact both ways, whatever the shape, the runs and the order of the activations."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.errors import InputError
from isobit.kernels.weights import layout


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int]]:
    """Runs that cover K, and segments over the runs; either may hold empty ones."""
    lengths = draw(st.lists(st.integers(0, 21), max_size=7))
    edges = [0, *itertools.accumulate(lengths)]
    inner = draw(st.lists(st.integers(0, len(lengths)), max_size=4))
    return list(itertools.pairwise(edges)), [0, *sorted(inner), len(lengths)]


@settings(deadline=None, max_examples=60)
@given(
    cut=cuts(),
    n=st.integers(0, 40),
    bits=st.sampled_from([4, 8]),
    asymmetric=st.booleans(),
    shuffled=st.booleans(),
)
def test_quantized_round_trip(
    cut: tuple[list[tuple[int, int]], list[int]],
    n: int,
    bits: int,
    asymmetric: bool,
    shuffled: bool,
) -> None:
    runs, segments = cut
    k = runs[-1][1] if runs else 0
    codes = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    scales = torch.rand(n, len(runs)).half()
    zeros = torch.randint(0, 2**bits, scales.shape, dtype=torch.uint8) if asymmetric else None
    order = torch.randperm(k) if shuffled else None
    weight = layout.pack_quantized(
        codes, scales, zeros, bits=bits, runs=runs, segments=segments, order=order
    )
    back, back_scales, back_zeros = layout.unpack(weight)
    assert torch.equal(back, codes)
    assert back_scales is not None and back_scales.dtype == torch.float16
    assert torch.equal(back_scales, scales)
    assert (back_zeros is None) == (zeros is None)
    assert zeros is None or (back_zeros is not None and torch.equal(back_zeros, zeros))
    assert weight.segments == len(segments) - 1


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 21), max_size=6),
    n=st.integers(0, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_dense_round_trip_and_embedding(lengths: list[int], n: int, dtype: torch.dtype) -> None:
    segments = [0, *itertools.accumulate(lengths)]
    values = torch.randn(n, segments[-1]).to(dtype)
    weight = layout.pack_dense(values, segments=segments)
    assert torch.equal(layout.unpack(weight)[0], values)
    assert weight.segments == len(lengths)
    ids = torch.randint(0, n, (9,)) if n else torch.empty(0, dtype=torch.int64)
    assert torch.equal(layout.embedding_rows(weight, ids), values[ids])


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 16, (100, 64), dtype=torch.uint8)
    scales = torch.rand(100, 2)
    packed = []
    for chunk in (1, 1 << 30):
        monkeypatch.setattr(layout, "CHUNK_ELEMENTS", chunk)
        weight = layout.pack_quantized(
            codes, scales, None, bits=4, runs=[(0, 32), (32, 64)], segments=[0, 2]
        )
        packed.append(weight.data)
        assert torch.equal(layout.unpack(weight)[0], codes)
    assert torch.equal(*packed)


def test_int4_line_is_as_documented() -> None:
    codes = torch.zeros(16, 8, dtype=torch.uint8)
    codes[3] = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    weight = layout.pack_quantized(
        codes, torch.ones(16, 1), None, bits=4, runs=[(0, 8)], segments=[0, 1]
    )
    assert weight.data[0, 0, 3].item() & 0xFFFFFFFF == 0x8642_7531
    assert weight.gather is None


def test_padding_is_the_zero_point() -> None:
    zeros = torch.tensor([[3], [16], [0]], dtype=torch.uint8)
    weight = layout.pack_quantized(
        torch.zeros(3, 5, dtype=torch.uint8),
        torch.ones(3, 1),
        zeros,
        bits=4,
        runs=[(0, 5)],
        segments=[0, 1],
    )
    assert weight.gather is not None and weight.gather.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    words = weight.data[0, 0].tolist()
    # k = 5, 6, 7 sit in nibbles 6, 3 and 7; no code reaches 16, and the activation there is 0.
    assert [words[0] >> shift & 15 for shift in (24, 12, 28)] == [3, 3, 3]
    assert [words[1] >> shift & 15 for shift in (24, 12, 28)] == [15, 15, 15]
    assert weight.scales is not None and weight.scales[0, 0, 3:].eq(1).all()
    assert weight.zeros is not None and weight.zeros[0, 0, 3:].eq(8).all()


def test_columns_no_run_names_are_ignored() -> None:
    codes = torch.full((2, 16), 5, dtype=torch.uint8)
    weight = layout.pack_quantized(
        codes, torch.ones(2, 1), None, bits=4, runs=[(8, 16)], segments=[0, 1]
    )
    assert weight.gather is not None and weight.gather.tolist() == list(range(8, 16))
    assert layout.unpack(weight)[0].tolist() == [[8] * 8 + [5] * 8] * 2


CODES = torch.zeros(2, 8, dtype=torch.uint8)
SCALES = torch.ones(2, 1)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("E-KERNEL-SHAPE", {"bits": 3}),
        ("E-KERNEL-SHAPE", {"codes": CODES.int()}),
        ("E-KERNEL-SHAPE", {"scales": torch.ones(2, 2)}),
        ("E-KERNEL-SHAPE", {"scales": SCALES.double()}),
        ("E-KERNEL-SHAPE", {"zeros": torch.zeros(1, 1, dtype=torch.uint8)}),
        ("E-KERNEL-SHAPE", {"runs": [(0, 9)]}),
        ("E-KERNEL-SHAPE", {"segments": [0, 2]}),
        ("E-KERNEL-SHAPE", {"segments": [1]}),
        ("E-KERNEL-SHAPE", {"order": torch.zeros(8, dtype=torch.int64)}),
        ("E-KERNEL-CODE", {"codes": CODES + 16}),
        ("E-KERNEL-CODE", {"zeros": torch.full((2, 1), 17, dtype=torch.uint8)}),
    ],
)
def test_bad_arguments_are_named(code: str, change: dict[str, object]) -> None:
    given: dict = {
        "codes": CODES,
        "scales": SCALES,
        "zeros": None,
        "bits": 4,
        "runs": [(0, 8)],
        "segments": [0, 1],
    } | change
    with pytest.raises(InputError) as caught:
        layout.pack_quantized(given.pop("codes"), given.pop("scales"), given.pop("zeros"), **given)
    assert caught.value.code == code


def test_dense_and_embedding_refuse() -> None:
    with pytest.raises(InputError, match="E-KERNEL-SHAPE segments"):
        layout.pack_dense(torch.ones(2, 8), segments=[0, 4])
    dense = layout.pack_dense(torch.ones(2, 8), segments=[0, 8])
    with pytest.raises(InputError, match="E-KERNEL-INDEX"):
        layout.embedding_rows(dense, torch.tensor([2]))
    codes = layout.pack_quantized(CODES, SCALES, None, bits=4, runs=[(0, 8)], segments=[0, 1])
    with pytest.raises(InputError, match="E-KERNEL-KIND"):
        layout.embedding_rows(codes, torch.tensor([0]))
