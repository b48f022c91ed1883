"""Recorded ops: checked while recording, run over any number of rows, without new memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from isobit.errors import InputError
from isobit.kernels.program import record, record_rows
from isobit.kernels.program.program import Program
from isobit.kernels.step.step import Step, StepLimits, StepMemory
from isobit.kernels.weights import layout

Maker = Callable[..., layout.PackedWeight]
LIMITS = StepLimits(vocabulary=10, positions=128, pages=3)


def make_step(tokens: list[int], sampled: list[int]) -> Step:
    count = len(tokens)
    return Step(
        tokens=torch.tensor(tokens),
        positions=torch.arange(count, dtype=torch.int32),
        slots=torch.arange(count),
        sequence=torch.zeros(count, dtype=torch.int32),
        block_tables=torch.tensor([[2, 0]], dtype=torch.int32),
        sampled=torch.tensor(sampled, dtype=torch.int64),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_of_two_ranks_become_one(dtype: torch.dtype, tied: bool) -> None:
    """Each rank looks up its tokens; the gathered rows are the plain table's."""
    table = torch.randn(10, 7).to(dtype)
    tokens = [9, 0, 5, 6, 5]
    parts = []
    for first, end in ((0, 6), (6, 10)):
        program = Program(LIMITS)
        rows = program.buffer(7, dtype)
        own = table[first:end].contiguous()
        weight = layout.pack_dense(own, segments=[0, 7]) if tied else own
        record_rows.embed(program, weight, first, end - first, rows)
        program.run(make_step(tokens, []))
        parts.append(program.rows_of(rows))
    program = Program(LIMITS)
    gathered, out = program.buffer(7, dtype, planes=2), program.buffer(7, torch.float32)
    program.call(lambda: program.rows_of(gathered).copy_(torch.stack(parts)))
    record_rows.owned_rows(program, gathered, [6, 10], out)
    program.run(make_step(tokens, []))
    assert torch.equal(program.rows_of(out), table[tokens].float())


def test_sampled_rows_and_columns_of_ranks() -> None:
    program = Program(LIMITS)
    x = program.buffer(4, torch.float32)
    program.call(lambda: program.rows_of(x).copy_(torch.arange(12.0).view(3, 4)))
    last = torch.zeros(4)
    record_rows.last_row(program, x, last)
    program.use_sampled_rows()
    picked, pieces = program.buffer(4, torch.float32), program.buffer(4, torch.float32, planes=2)
    out = program.buffer(5, torch.float32)
    record_rows.sampled_rows(program, x, picked)
    program.call(lambda: program.rows_of(pieces).copy_(torch.stack([program.rows_of(picked)] * 2)))
    record_rows.join_columns(program, pieces, [3, 4], out)
    program.run(make_step([1, 2, 3], [2, 0]))
    assert program.rows_of(picked).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert program.rows_of(out).tolist() == [[8, 9, 10, 8, 9], [0, 1, 2, 0, 1]]
    assert last.tolist() == [8, 9, 10, 11]


def test_memory_is_taken_once_for_the_largest_step(quantized: Maker) -> None:
    weight = quantized(24, [(0, 16), (16, 32)], [0, 2])
    program = Program(LIMITS)
    x, out = program.buffer(32, torch.float32), program.buffer(24, torch.float32)
    program.call(lambda: program.rows_of(x).fill_(1))
    record.linear(program, x, [weight], [out])
    program.run(make_step([1] * 9, []))
    taken, memory = program.nbytes, out.memory.data_ptr()
    assert taken == 9 * (32 + 24) * 4
    for count in (1, 9, 4):
        program.run(make_step([1] * count, []))
        assert program.rows_of(out).shape == (count, 24)
    assert (program.nbytes, out.memory.data_ptr()) == (taken, memory)


def test_nothing_of_the_sampled_part_runs_without_samples() -> None:
    program, calls = Program(LIMITS), []
    program.call(lambda: calls.append("step"))
    program.use_sampled_rows()
    program.call(lambda: calls.append("sampled"))
    program.run(make_step([1], []))
    program.run(make_step([1], [0]))
    assert calls == ["step", "step", "sampled"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", [3, 10], r"step: tokens\[1\] is 10; it must be from 0 to 9"),
        ("positions", [0, 128], r"step: positions\[1\] is 128"),
        ("slots", [-1, 0], r"step: slots\[0\] is -1; it must be from 0 to 191"),
        ("sequence", [0, 1], r"step: sequence\[1\] is 1"),
        ("sampled", [2], r"step: sampled\[0\] is 2"),
        ("block_tables", [[3, 0]], r"step: row 0 at position 0 needs pages"),
    ],
)
def test_indices_are_checked_before_anything_runs(field: str, value: list, message: str) -> None:
    program, calls = Program(LIMITS), []
    program.call(lambda: calls.append(1))
    step = make_step([1, 2], [1])
    wrong = torch.tensor(value, dtype=getattr(step, field).dtype)
    with pytest.raises(InputError, match="E-KERNEL-INDEX " + message):
        program.run(dataclasses.replace(step, **{field: wrong}))
    assert not calls


def test_what_does_not_fit_is_refused_while_recording(quantized: Maker) -> None:
    program = Program(LIMITS)
    narrow, wide = program.buffer(31, torch.float32), program.buffer(32, torch.float32)
    out, small = program.buffer(24, torch.float32), program.buffer(23, torch.float32)
    half = program.buffer(24, torch.bfloat16)
    weight = quantized(24, [(0, 32)], [0, 1])
    wrong: list[Callable[[], None]] = [
        lambda: record.linear(program, narrow, [weight], [out]),
        lambda: record.linear(program, wide, [weight], [small]),
        lambda: record.linear(program, wide, [weight], [half]),
        lambda: record.linear(program, wide, [weight], [out], biases=[torch.ones(23)]),
        lambda: record.rms_norm(program, wide, torch.ones(31), 1e-6, wide),
        lambda: record.rms_norm(program, wide, torch.ones(32), 1e-6, wide, add=out),
        lambda: record.add(program, wide, wide, torch.ones(31)),
        lambda: record.silu_mul(program, out, wide, half),
        lambda: record_rows.embed(program, torch.ones(10, 31), 0, 10, wide),
        lambda: record_rows.embed(program, weight, 0, 10, wide),
        lambda: record_rows.owned_rows(program, wide, [5, 10], out),
        lambda: record_rows.join_columns(program, wide, [33], out),
        lambda: record_rows.sampled_rows(program, wide, out),
        lambda: record_rows.last_row(program, wide, torch.ones(31)),
    ]
    for call in wrong:
        with pytest.raises(InputError, match="E-KERNEL-SHAPE"):
            call()


def test_a_step_written_over_another_is_the_step_that_runs() -> None:
    """Steps of one shape share their tensors; slots follow from the tables, nothing is stale."""
    program, memory = Program(LIMITS), StepMemory()
    seen: list[list[int]] = []
    program.call(lambda: seen.append(program.step.slots.tolist()))
    tables = [[2, 0], [1]]
    for tokens, positions, sequence, slots in (
        ([3, 4], [63, 5], [0, 1], [191, 69]),
        ([5, 6], [64, 6], [0, 1], [0, 70]),
        ([7], [7], [1], [71]),
    ):
        step = memory.fill(
            tokens=tokens, positions=positions, sequence=sequence, tables=tables, sampled=[0]
        )
        program.run(step)
        assert seen.pop() == slots
        assert step.tokens.tolist() == tokens
        assert step.positions.tolist() == positions
        assert step.sequence.tolist() == sequence
        assert step.block_tables.tolist() == [[2, 0], [1, 0]]


def test_a_written_step_is_checked_each_time() -> None:
    program, memory = Program(LIMITS), StepMemory()
    for tokens, positions, wrong in (
        ([1], [0], ""),
        ([10], [0], "tokens"),
        ([1], [64], "slots"),
        ([1], [63], ""),
    ):
        step = memory.fill(
            tokens=tokens, positions=positions, sequence=[0], tables=[[2]], sampled=[]
        )
        if not wrong:
            program.run(step)
            continue
        with pytest.raises(InputError, match=f"step: {wrong}"):
            program.run(step)
    for positions, sequence in (([0, 1], [0]), ([0], [0, 0]), ([], [0])):
        with pytest.raises(InputError, match="E-KERNEL-SHAPE"):
            memory.fill(
                tokens=[1], positions=positions, sequence=sequence, tables=[[2]], sampled=[]
            )
