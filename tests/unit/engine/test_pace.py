"""How many steps ranks make in one go: as many as nobody waits for."""

from __future__ import annotations

import pytest

from isobit.runtime.scheduler import step_timer
from isobit.runtime.scheduler.step_timer import Pace, RankTimes


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds that the clock shows next; the last ones stay."""
    times = [0.0]
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: times[-1])
    return times


def answers(*steps: tuple[float, float]) -> list[dict[int, dict[str, float]]]:
    """Of two ranks; `steps` gives the seconds each had inside kernels."""
    return [
        {
            rank: {"elapsed_s": 2 * s, "kernels_s": s, "collectives_s": s / 8}
            for rank, s in enumerate(step)
        }
        for step in steps
    ]


def test_nothing_is_known_before_the_first_decode_step(clock):
    own = Pace()
    assert own.steps_in_one_go == 1
    clock.append(2.0)
    own.add(answers((1, 1)), all_have_begun=False)
    clock.append(3.0)
    own.add(answers((1, 1)), all_have_begun=True)
    assert (own.prefill_s, own.decode_s, own.steps_in_one_go) == (3.0, [], 1)


@pytest.mark.parametrize(
    ("step_s", "count"), [(1.0, 1), (0.031, 1), (0.016, 1), (0.014, 2), (0.007, 4), (1e-5, 16)]
)
def test_a_go_takes_no_longer_than_people_notice(clock, step_s, count):
    own = Pace()
    clock.append(1.0)
    own.add(answers((1, 1)), all_have_begun=True)
    clock.append(1.0 + step_s)
    own.add(answers((1, 1)), all_have_begun=True)
    assert own.steps_in_one_go == count


def test_steps_of_one_go_share_its_time_and_ranks_have_their_own(clock):
    own = Pace()
    clock.append(1.0)
    own.add(answers((1, 1)), all_have_begun=True)
    clock.append(1.5)
    own.add(answers((0.125, 0.25), (0.5, 0.25)), all_have_begun=True)
    assert own.decode_s == [0.25, 0.25]
    assert [vars(own.ranks[rank]) for rank in (0, 1)] == [
        {"elapsed_s": 1.25, "kernels_s": 0.625, "collectives_s": 0.078125},
        {"elapsed_s": 1.0, "kernels_s": 0.5, "collectives_s": 0.0625},
    ]
    assert own.ranks[0].kernels_share == 0.5


def test_without_a_decode_step_there_is_no_share():
    assert (RankTimes().kernels_share, RankTimes().collectives_share) == (0, 0)
