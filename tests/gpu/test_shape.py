"""Shapes that steps are padded to, and what graphs hold."""

from __future__ import annotations

from isobit.kernels.gpu.attention import Heads
from isobit.kernels.gpu.listing import Call, Listing
from isobit.kernels.gpu.shape import SPLIT_ROWS, padded, shape_of
from isobit.kernels.gpu.simulated.card import SimulatedCard

from .tiny import step

HEADS = Heads.of([0, 0, 1, 1], 2, "cpu", 16)


def test_padding() -> None:
    assert [padded(n) for n in (0, 1, 2, 3, 5, 33, 64, 65, 128, 129)] == [
        0, 1, 2, 4, 8, 64, 64, 128, 128, 192,
    ]  # fmt: skip


def test_decode_is_one_sampled_row_a_sequence() -> None:
    both = step((0, 9, [1]), (1, 30, [1]))
    shape, chunks = shape_of(both, HEADS)
    assert shape.decode and chunks == [(0, 1), (1, 2)] and shape.stretches == 1
    for other in (
        step((0, 9, [1]), (1, 30, [1]), sampled=[1]),
        step((0, 9, [1, 2])),
        step((0, 9, [1]), (1, 30, [1]), sampled=[]),
    ):
        assert not shape_of(other, HEADS)[0].decode


def test_contexts_of_like_length_share_a_graph() -> None:
    stretches = [shape_of(step((0, end, [1])), HEADS)[0].stretches for end in (0, 511, 512, 1023)]
    assert stretches == [1, 1, 2, 2]
    crowd = step(*[(number, 1023, [1]) for number in range(SPLIT_ROWS + 1)])
    assert shape_of(crowd, HEADS)[0].stretches == 1


def test_a_rank_without_heads_has_no_chunks() -> None:
    shape, chunks = shape_of(step((0, 9, [1])), None)
    assert shape.chunks == 1 and not chunks


def test_a_graph_ends_at_a_call_that_it_cannot_hold() -> None:
    card, seen = SimulatedCard(), []
    kinds = [True, True, False, False, True, False]
    listing = Listing(
        [Call(function=lambda i=i: seen.append(i), capturable=kind) for i, kind in enumerate(kinds)]
    )
    listing.run()
    listing.capture(card)
    assert card.graphs == 2 and seen == list(range(6))
    listing.run()
    assert card.replays == 2 and seen == [*range(6), *range(6)]
