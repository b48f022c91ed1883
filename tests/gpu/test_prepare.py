"""Kernels are compiled before the first step: whatever its shape, it starts none but those."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from isobit.errors import InputError
from isobit.kernels.gpu import program as program_module
from isobit.kernels.gpu.launch import Launch
from isobit.kernels.gpu.program import GpuProgram
from isobit.kernels.gpu.shape import Shape, padded, sizes

from .cards import CountingCard
from .tiny import MOST_ROWS, decoder, save, step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models"), "int4")


def program_of(model: Path) -> GpuProgram:
    made = decoder(model, CountingCard()).recorded.program
    assert isinstance(made, GpuProgram)
    return made


def test_every_shape_starts_prepared_kernels_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all padded rows, sampled rows, chunks, columns and stretches of keys."""
    program, loaded = program_of(model), []
    monkeypatch.setattr(Launch, "load", lambda launch: loaded.append(launch.key))
    assert program.prepare() == len(set(loaded)) == len(loaded)
    known = set(loaded)
    assert program._heads is not None
    columns, rows = set(program._heads.columns), sizes(MOST_ROWS)
    for count, sampled, width in product(rows, [0, *rows], columns):
        for decode, stretches in ((False, 1), (True, 1), (True, 2)):
            if sampled > count or (decode and sampled != count):
                continue
            shape = Shape(
                rows=count, sampled=sampled, chunks=count, columns=width, stretches=stretches,
                decode=decode,
            )  # fmt: skip
            listing = program._listed(shape)
            new = {launch.key for launch in listing.launches() if all(launch.grid)} - known
            assert not new, shape


def test_the_memory_between_kernels_is_at_its_largest_before_the_first_step(model: Path) -> None:
    program = program_of(model)
    program.prepare()
    held = program.nbytes
    for count, sampled in product(sizes(MOST_ROWS), repeat=2):
        program._listed(
            Shape(rows=count, sampled=min(count, sampled), chunks=count, columns=16, stretches=1,
                  decode=False)
        )  # fmt: skip
    assert program.nbytes == held


def test_sizes_are_those_that_rows_are_padded_to() -> None:
    assert sizes(130) == [1, 2, 4, 8, 16, 32, 64, 128, 192]
    assert all(padded(size) == size for size in sizes(512))


def test_few_graphs_are_kept_and_the_oldest_goes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_module, "MOST_GRAPHS", 1)
    card = CountingCard()
    rank = decoder(model, card)
    both = step((0, 0, [5]), (1, 0, [9]))
    wanted = rank.forward(both)[1].clone()
    rank.forward(step((0, 0, [5])))
    assert rank.recorded.program._decode.keys() == {
        Shape(rows=1, sampled=1, chunks=1, columns=16, stretches=1, decode=True)
    }
    assert (rank.forward(both)[1] == wanted).all()
    assert card.graphs == 3


def test_more_sampled_rows_than_were_planned_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_module, "MOST_SAMPLED", 2)
    rank = decoder(model, CountingCard())
    rank.forward(step((0, 0, [5, 6, 7]), sampled=[1, 2]))
    with pytest.raises(InputError, match="3 sampled rows; memory is there for 2"):
        rank.forward(step((0, 0, [5, 6, 7])))
