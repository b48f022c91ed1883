"""Every order in which ranks can take the steps of their meetings, walked through one by one.

A model of kernels/gpu/jit/peers.py with memory that shows every write at once: what is shown is
that two slots and two flags are enough for one meeting a sum, and that one of either is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

MEETINGS = 5


@dataclass(frozen=True)
class State:
    """`place[r]`: the next step of rank r. `slots[r]`: the meetings whose data lie in its slots.
    `flags[r][p]`: the meetings that rank p has told rank r."""

    place: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    flags: tuple[tuple[tuple[int, ...], ...], ...]


def steps(rank: int, ranks: int) -> list[tuple[str, int, int]]:
    """What a rank does in all meetings: (step, meeting, other rank)."""
    others = [peer for peer in range(ranks) if peer != rank]
    found = []
    for meeting in range(1, MEETINGS + 1):
        found.append(("write", meeting, rank))
        found += [("tell", meeting, peer) for peer in others]
        found += [("wait", meeting, peer) for peer in others]
        found += [("read", meeting, peer) for peer in others]
    return found


def changed(values: tuple, place: int, value: object) -> tuple:
    return (*values[:place], value, *values[place + 1 :])


def walk(ranks: int, slots: int, flags: int) -> set[str]:
    """What can go wrong: "stuck", "wrong data"; empty when nothing can."""
    scripts = [steps(rank, ranks) for rank in range(ranks)]
    start = State((0,) * ranks, ((0,) * slots,) * ranks, (((0,) * flags,) * ranks,) * ranks)
    seen, waiting, wrong = {start}, [start], set()
    while waiting:
        state = waiting.pop()
        moved = False
        for rank in range(ranks):
            if state.place[rank] == len(scripts[rank]):
                continue
            step, meeting, peer = scripts[rank][state.place[rank]]
            written, told = state.slots, state.flags
            if step == "write":
                own = changed(written[rank], meeting % slots, meeting)
                written = changed(written, rank, own)
            elif step == "tell":
                theirs = changed(told[peer][rank], meeting % flags, meeting)
                told = changed(told, peer, changed(told[peer], rank, theirs))
            elif step == "wait" and told[rank][peer][meeting % flags] != meeting:
                continue
            elif step == "read" and written[peer][meeting % slots] != meeting:
                wrong.add("wrong data")
            moved = True
            after = State(changed(state.place, rank, state.place[rank] + 1), written, told)
            if after not in seen:
                seen.add(after)
                waiting.append(after)
        if not moved and any(
            place < len(script) for place, script in zip(state.place, scripts, strict=True)
        ):
            wrong.add("stuck")
    return wrong


@pytest.mark.parametrize("ranks", [2, 3])
def test_two_slots_and_two_flags_are_enough(ranks: int) -> None:
    assert walk(ranks, slots=2, flags=2) == set()


def test_one_slot_is_written_while_another_rank_still_reads_it() -> None:
    assert walk(2, slots=1, flags=2) == {"wrong data"}


def test_one_flag_is_overwritten_before_another_rank_has_looked() -> None:
    assert walk(2, slots=2, flags=1) == {"stuck"}
