"""The cutting of requests into steps: every token once, in order, within the room there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.runtime.scheduler.batch import (
    Request,
    StepRows,
    advance,
    assign_pages,
    form_step,
    steps_after,
)
from isobit.runtime.scheduler.kv_pages import pages_for
from isobit.runtime.settings.engine import PAGE_TOKENS, SamplingSettings


def request(prompt, max_tokens=4, **changes) -> Request:
    sampling = SamplingSettings(max_tokens=max_tokens, ignore_eos=True)
    return Request(prompt=list(prompt), sampling=sampling, **changes)


def test_a_step_holds_whole_prompts_one_after_the_other():
    rows = form_step([request([5, 6, 7]), request([8])], 10)
    assert rows == StepRows(
        tokens=[5, 6, 7, 8], positions=[0, 1, 2, 0], owner=[0, 0, 0, 1], sampled=[2, 3]
    )


def test_a_prompt_is_cut_at_the_room_and_sampled_with_its_last_piece():
    requests = [request([5, 6, 7, 8, 9])]
    first = form_step(requests, 3)
    advance(requests, first)
    second = form_step(requests, 3)
    assert (first.tokens, first.sampled) == ([5, 6, 7], [])
    assert (second.tokens, second.positions, second.sampled) == ([8, 9], [3, 4], [1])


def test_no_more_requests_are_sampled_than_there_is_memory_for():
    """The third waits for its turn, a prompt that does not end yet goes on."""
    requests = [request([5]), request([6]), request([7]), request(range(8, 20))]
    rows = form_step(requests, 8, most_sampled=2)
    assert rows.owner == [0, 1, *[3] * 6] and rows.sampled == [0, 1]
    advance(requests, rows)
    for each in requests[:2]:
        each.finish_reason = "length"
    rows = form_step(requests, 8, most_sampled=2)
    assert rows.owner == [2, *[3] * 6] and rows.sampled == [0, 6]


def test_prefill_and_decode_share_a_step():
    decoding = request([5, 6], emitted=[7], computed=2)
    rows = form_step([decoding, request([8, 9])], 10)
    assert rows == StepRows(tokens=[7, 8, 9], positions=[2, 0, 1], owner=[0, 1, 1], sampled=[0, 2])


def test_a_request_without_room_waits():
    rows = form_step([request([5, 6]), request([7])], 2)
    assert rows.owner == [0, 0]


def test_a_finished_request_takes_no_row():
    rows = form_step([request([5], finish_reason="length"), request([6])], 10)
    assert rows.owner == [1]


def test_forming_a_step_changes_nothing():
    requests = [request([5, 6, 7])]
    assert form_step(requests, 2) == form_step(requests, 2)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    new=st.lists(st.integers(1, 8), min_size=6, max_size=6),
    most_rows=st.integers(1, 40),
)
def test_every_token_is_computed_once_in_order(lengths, new, most_rows):
    """Drive requests to their end with made-up tokens, as an engine does."""
    requests = [
        request(range(100 * i, 100 * i + length), new[i]) for i, length in enumerate(lengths)
    ]
    computed: list[list[tuple[int, int]]] = [[] for _ in requests]
    while not all(r.finished for r in requests):
        rows = form_step(requests, most_rows)
        assert 0 < len(rows.tokens) <= most_rows
        for token, position, owner in zip(rows.tokens, rows.positions, rows.owner, strict=True):
            computed[owner].append((position, token))
        advance(requests, rows)
        for row in rows.sampled:
            owner = rows.owner[row]
            assert rows.positions[row] == len(requests[owner].tokens) - 1
            requests[owner].commit(1000 + len(requests[owner].emitted), ())
    for each, pairs, wanted in zip(requests, computed, new, strict=False):
        assert len(each.emitted) == wanted
        # The last emitted token is never fed back: nobody asks for what follows it.
        assert pairs == list(enumerate(each.tokens[:-1]))


def test_the_step_after_is_the_one_that_would_be_formed():
    requests = [request([5, 6, 7], 3), request([8], 1), request([9], 2)]
    rows = form_step(requests, 10)
    (after,) = steps_after(requests, [rows], 1)
    assert after == StepRows(tokens=[-1, -3], positions=[3, 1], owner=[0, 2], sampled=[0, 1])
    advance(requests, rows)
    for each, token in zip(requests, (50, 80, 90), strict=True):
        each.commit(token, ())
    formed = form_step(requests, 10)
    assert (formed.positions, formed.owner) == (after.positions, after.owner)
    assert formed.tokens == [50, 90]


def test_no_step_is_sent_after_the_last_or_after_a_piece_of_a_prompt():
    assert steps_after([request([5], 1)], [form_step([request([5], 1)], 4)], 1) == []
    long = [request([5, 6, 7]), request([8])]
    assert steps_after(long, [form_step(long, 2)], 1) == []


def test_a_request_that_stopped_has_no_place_in_the_step_after():
    requests = [request([5]), request([6])]
    first = form_step(requests, 4)
    (second,) = steps_after(requests, [first], 1)
    advance(requests, first)
    requests[0].finish_reason = "stop"
    requests[1].commit(60, ())
    third = steps_after(requests, [second], 1)
    assert third == [StepRows(tokens=[-2], positions=[2], owner=[1], sampled=[0])]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    most=st.lists(st.integers(1, 5), min_size=1, max_size=9),
)
def test_steps_made_in_one_go_are_those_formed_one_by_one(lengths, most):
    """Whatever the driver asks for in one go, always with steps on their way already."""
    requests = [request([5 + i], length) for i, length in enumerate(lengths)]
    alone = [request([5 + i], length) for i, length in enumerate(lengths)]
    on_their_way = [[form_step(requests, 10)]]
    while on_their_way:
        following = steps_after(requests, on_their_way[-1], most[0])
        most = most[1:] + most[:1]
        on_their_way += [following] if following else []
        for rows in on_their_way.pop(0):
            expected = form_step(alone, 10)
            assert (rows.positions, rows.owner) == (expected.positions, expected.owner)
            for batch in (requests, alone):
                advance(batch, rows)
                for row in rows.sampled:
                    batch[rows.owner[row]].commit(60, ())
    assert all(each.finished for each in requests)


def test_a_row_of_a_later_step_takes_the_token_that_was_sampled_before_it():
    requests = [request([5, 6, 7], 9), request([8], 1), request([9], 9)]
    first, second, third = steps_after(requests, [form_step(requests, 10)], 3)
    assert first == StepRows(tokens=[-1, -3], positions=[3, 1], owner=[0, 2], sampled=[0, 1])
    assert second == StepRows(tokens=[-1, -2], positions=[4, 2], owner=[0, 2], sampled=[0, 1])
    assert third == StepRows(tokens=[-1, -2], positions=[5, 3], owner=[0, 2], sampled=[0, 1])


@pytest.mark.parametrize(
    ("tokens", "pages"), [(1, 1), (PAGE_TOKENS, 1), (PAGE_TOKENS + 1, 2), (0, 0)]
)
def test_pages(tokens, pages):
    assert pages_for(tokens) == pages


@given(
    shapes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=5),
    spare=st.integers(0, 3),
)
def test_pages_are_enough_and_shared_by_no_two(shapes, spare):
    requests = [request([1] * length, new) for length, new in shapes]
    needed = sum(-(-(length + new) // PAGE_TOKENS) for length, new in shapes)
    assign_pages(requests, needed + spare)
    pages = [page for each in requests for page in each.pages]
    assert len(set(pages)) == len(pages) == needed
    assert set(pages) <= set(range(needed + spare))
    for each, (length, new) in zip(requests, shapes, strict=True):
        assert len(each.pages) * PAGE_TOKENS >= length + new


def test_too_few_pages_are_named_in_numbers(error_of):
    error = error_of(assign_pages, [request([1] * 100, 100), request([1], 1)], 4)
    assert error.code == "E-KV-CACHE"
    assert "4 pages" in error.message
    assert "need 5" in error.message


def test_a_stop_token_ends_a_request_unless_ignored():
    sampling = SamplingSettings(max_tokens=9)
    stopping, going = Request(prompt=[1], sampling=sampling), request([1], 9)
    for each in (stopping, going):
        each.commit(7, (7, 8))
    assert (stopping.finished, going.finished) == (True, False)


def test_the_last_allowed_token_ends_a_request():
    last = request([1], 2)
    last.commit(5, ())
    assert not last.finished
    last.commit(5, ())
    assert last.finished
