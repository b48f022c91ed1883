"""Steps that compiled code makes by itself: those of single runs, ended by the same limits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops
from isobit.kernels.program.program import Program
from isobit.kernels.step.step import StepMemory
from isobit.runtime.collectives.choose import choose
from isobit.runtime.forward.decoder import Decoder
from isobit.runtime.trace.tracer import Tracer
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import INT4

TABLES = [[0, 1], [2]]


@pytest.fixture
def decoder() -> Decoder:
    spec = read_spec(INT4)
    plan = make_plan(spec, PlanSettings(degree=1))
    weights = load_rank(open_checkpoint(INT4), spec, plan, 0, torch.bfloat16)
    collectives = choose("auto", plan, 0, hosts=["here"], timeout_s=60).collectives
    made = Decoder(
        spec, plan, 0, weights, collectives, Tracer(None), dtype=torch.bfloat16, kv_pages=3
    )
    forget(made)
    return made


def forget(decoder: Decoder) -> None:
    """What lies before the first position is not what was in memory by chance."""
    for cache in decoder.caches:
        cache.keys.zero_(), cache.values.zero_()


@dataclasses.dataclass
class Run:
    """Two sequences; the first begins three positions before its second page."""

    decoder: Decoder
    memory: StepMemory = dataclasses.field(default_factory=StepMemory)

    def step(self, tokens: list[int], number: int) -> ops.Outcome:
        step = self.memory.fill(
            tokens=tokens,
            positions=[61 + number, number],
            sequence=[0, 1],
            tables=TABLES,
            sampled=[0, 1],
        )
        hidden, logits = self.decoder.forward(step)
        return ops.Outcome((hidden, *self.decoder.normed()), logits)

    @property
    def program(self) -> Program:
        program = self.decoder.recorded.program
        assert isinstance(program, Program) and program.compiled
        return program


def test_steps_in_one_go_are_the_steps_one_by_one(decoder):
    run, tokens, one_by_one = Run(decoder), [5, 900], []
    for number in range(9):
        one_by_one.append(run.step(tokens, number).read(True))
        tokens = one_by_one[-1][0]
    forget(decoder)
    again = Run(decoder)
    outcome = again.step([5, 900], 0)
    greatest, digests = outcome.read(True)
    found = [(greatest, digests)]
    for count in (1, 5, 2):
        made = list(again.program.decode(count, greatest, again.memory.ends, outcome, True))
        assert all(busy > 0 for _, _, busy, _ in made)
        found += [(tokens, digests) for tokens, digests, _, _ in made]
        greatest = found[-1][0]
    assert found == one_by_one


def test_without_digests_there_are_none(decoder):
    run = Run(decoder)
    outcome = run.step([5, 900], 0)
    made = list(run.program.decode(2, [1, 2], run.memory.ends, outcome, False))
    assert [digests for _, digests, _, _ in made] == [[], []]


def test_a_row_whose_logits_were_not_finite_goes_on_with_token_0(decoder):
    run = Run(decoder)
    outcome = run.step([5, 900], 0)
    (by_hand,) = run.program.decode(1, [0, 7], run.memory.ends, outcome, True)
    outcome = run.step([5, 900], 0)
    (made,) = run.program.decode(1, [-1, 7], run.memory.ends, outcome, True)
    assert made[:2] == by_hand[:2]


@pytest.mark.parametrize("steps", [2, 5])
def test_a_go_ends_where_the_pages_of_a_sequence_do(decoder, steps):
    """The row beside it has a second page, in which the shorter table is filled up with page 0."""
    run = Run(decoder)
    outcome = run.step([5, 900], 0)
    run.memory.ends[1] = 1 + steps
    made = []
    with pytest.raises(InputError, match=r"slots\[1\] is -1") as caught:
        for one in run.program.decode(9, [1, 2], run.memory.ends, outcome, True):
            made.append(one)
    assert caught.value.code == "E-KERNEL-INDEX"
    assert len(made) == steps


def test_rows_have_as_many_positions_as_the_pages_of_their_own_sequence():
    memory = StepMemory()
    memory.fill(tokens=[1, 2], positions=[0, 0], sequence=[1, 0], tables=TABLES, sampled=[0, 1])
    assert memory.ends == [64, 128]


def test_a_go_ends_where_the_positions_of_the_model_do(decoder):
    run = Run(decoder)
    outcome = run.step([5, 900], 0)
    limits = dataclasses.replace(run.program.limits, positions=64)
    run.program.limits = limits
    made = []
    with pytest.raises(InputError, match=r"positions\[0\] is 64; it must be from 0 to 63"):
        for one in run.program.decode(9, [1, 2], run.memory.ends, outcome, True):
            made.append(one)
    assert len(made) == 2
