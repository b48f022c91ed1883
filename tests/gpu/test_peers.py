"""Sums and gathers over regions of memory: one peer runs, what the others would do is there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from isobit.errors import EnvironmentFault
from isobit.kernels.gpu.jit.peers import LANES, MISMATCH, TIMEOUT
from isobit.kernels.gpu.peers import (
    Failure,
    Peer,
    RegionShape,
    add_planes_of_peers,
    peer_tree,
    read_report,
)
from isobit.runtime.collectives.cuda.choose import choose_on_cuda
from isobit.runtime.collectives.cuda.simulated import FileDriver
from isobit.runtime.collectives.measure import plan_of_atoms
from isobit.runtime.collectives.tree import sum_root, sum_subtrees
from isobit.shard.plan.atoms import atoms_of_rank, complete_subtrees

ATOMS, PROGRAMS, BLOCK = 8, 3, 16
DEGREES = (1, 2, 3, 4, 8)
SHAPES = ((1, 7), (2, 24), (3, 31))
"""Less than a block, as many blocks as programs, and twice as many: there are two slots."""


def owned(degree: int) -> list[range]:
    return [atoms_of_rank(ATOMS, degree, rank) for rank in range(degree)]


class Stage:
    """Regions of all peers, of which `rank` runs; the others' data and flags are written here."""

    def __init__(self, degree: int, rank: int, device: str) -> None:
        self.nodes = [complete_subtrees(ATOMS, atoms) for atoms in owned(degree)]
        planes = max(map(len, self.nodes))
        self.shape = RegionShape(peers=degree, planes=planes, programs=PROGRAMS, block=BLOCK)
        self.degree, self.rank = degree, rank
        room = self.shape.nbytes // 16 * 16 + 16
        self.memory = torch.zeros(degree, room, dtype=torch.uint8, device=device)
        self.peer = Peer(
            rank=rank,
            shape=self.shape,
            regions=torch.tensor([each.data_ptr() for each in self.memory], device=device),
            counts=torch.zeros(PROGRAMS, dtype=torch.int32, device=device),
            status=torch.zeros(1, dtype=torch.int64, device=device),
            report=torch.zeros(1, dtype=torch.int64, device=device),
            patience_ns=50_000_000,
        )
        self.meetings = [0] * PROGRAMS

    def come(self, messages: list[torch.Tensor], tag: int) -> None:
        """Every other peer writes its planes `[planes, size]` and its flags for the next call."""
        words = (self.shape.nbytes - self.shape.flags) // 4
        flags = self.memory[self.rank, : self.shape.flags].view(torch.int64)
        size = messages[0].shape[-1]
        for piece in range(-(-size // BLOCK)):
            program = piece % min(PROGRAMS, -(-size // BLOCK))
            self.meetings[program] += 1
            number = self.meetings[program]
            for rank in range(self.degree):
                if rank == self.rank:
                    continue
                place = (number % 2 * PROGRAMS + program) * self.shape.slot // 4
                slots = self.memory[rank, self.shape.flags :][: 4 * words].view(torch.int32)
                for plane, values in enumerate(messages[rank].view(torch.int32)):
                    part = values[piece * BLOCK : (piece + 1) * BLOCK]
                    slots[place + plane * BLOCK :][: len(part)] = part.to(slots.device)
                at = (number % 2 * self.degree + rank) * PROGRAMS + program
                flags[at] = number << 32 | tag


def partials(shape: tuple[int, int]) -> torch.Tensor:
    """Numbers of all magnitudes: another order of additions gives other bits."""
    return torch.randn(ATOMS, *shape) * 10.0 ** torch.randint(-4, 5, (ATOMS, *shape))


def root(values: torch.Tensor) -> torch.Tensor:
    return sum_root([(0, ATOMS)], sum_subtrees(values, range(ATOMS), ATOMS), ATOMS)


@pytest.mark.parametrize("degree", DEGREES)
def test_every_rank_ends_with_the_bits_of_the_tree(degree: int, device: str) -> None:
    for rank in {0, degree // 2, degree - 1}:
        stage = Stage(degree, rank, device)
        tree = peer_tree(stage.nodes)
        for shape in SHAPES * 2:
            values = partials(shape)
            nodes = [
                torch.stack(sum_subtrees(values[atoms.start : atoms.stop], atoms, ATOMS))
                for atoms in owned(degree)
            ]
            out = torch.full(shape, torch.nan, device=device)
            launch = stage.peer.all_reduce(nodes[rank].to(device), out, tree, site=2, name="here")
            stage.come([each.flatten(1) for each in nodes], launch.arguments["tag"])
            launch.run()
            assert torch.equal(out.cpu(), root(values)), (rank, shape)
        assert stage.peer.counts.tolist() == stage.meetings
        assert not stage.peer.report.any()


@pytest.mark.parametrize("degree", DEGREES)
def test_gathered_planes_give_the_same_bits(degree: int, device: str) -> None:
    nodes = [complete_subtrees(ATOMS, atoms) for atoms in owned(degree)]
    for shape in SHAPES:
        values = partials(shape)
        planes = torch.full((degree, max(map(len, nodes)), *shape), torch.nan)
        for rank, atoms in enumerate(owned(degree)):
            for plane, node in enumerate(
                sum_subtrees(values[atoms.start : atoms.stop], atoms, ATOMS)
            ):
                planes[rank, plane] = node
        out = torch.full(shape, torch.nan, device=device)
        add_planes_of_peers(planes.to(device), out, peer_tree(nodes)).run()
        assert torch.equal(out.cpu(), root(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_gather_keeps_every_byte_in_the_order_of_ranks(dtype: torch.dtype, device: str) -> None:
    stage = Stage(3, 1, device)
    for size in (3, 64, 180):
        tensors = [torch.randint(0, 255, (size,)).to(dtype) for _ in range(3)]
        out = torch.zeros(3, size, dtype=dtype, device=device)
        launch = stage.peer.all_gather(tensors[1].to(device), out, site=0, name="gather")
        words = launch.arguments["words"]
        # Blocks of a gather are as wide as a slot of two planes.
        assert launch.arguments["BLOCK"] == 2 * BLOCK
        come_with_words(stage, tensors, words.element_size(), launch.arguments["tag"])
        launch.run()
        assert torch.equal(out.cpu(), torch.stack(tensors)), size
    assert not stage.peer.report.any()


def come_with_words(stage: Stage, tensors: list[torch.Tensor], width: int, tag: int) -> None:
    """As Stage.come, for words of `width` bytes in blocks of twice the size."""
    flags = stage.memory[stage.rank, : stage.shape.flags].view(torch.int64)
    block = 2 * BLOCK * width
    pieces = -(-tensors[0].nbytes // block)
    for piece in range(pieces):
        program = piece % min(PROGRAMS, pieces)
        stage.meetings[program] += 1
        number = stage.meetings[program]
        for rank in {0, 1, 2} - {stage.rank}:
            data = tensors[rank].view(torch.uint8)[piece * block : (piece + 1) * block]
            place = stage.shape.flags + (number % 2 * PROGRAMS + program) * stage.shape.slot
            stage.memory[rank, place : place + len(data)] = data.to(stage.memory.device)
            at = (number % 2 * stage.degree + rank) * PROGRAMS + program
            flags[at] = number << 32 | tag


def failing(stage: Stage, device: str) -> Failure | None:
    shape = (1, 7)
    nodes = torch.ones(len(stage.nodes[stage.rank]), *shape, device=device)
    out = torch.empty(shape, device=device)
    tree = peer_tree(stage.nodes)
    stage.peer.all_reduce(nodes, out, tree, site=5, name="here").run()
    return read_report(int(stage.peer.report[0]))


def test_a_peer_that_does_not_come_is_named_and_all_are_told(device: str) -> None:
    stage = Stage(3, 1, device)
    assert failing(stage, device) == Failure(cause=TIMEOUT, peer=0, site=5, number=1)
    words = stage.memory[:, : stage.shape.flags].reshape(-1).view(torch.int64).view(3, -1)
    gone = 2 * 3 * PROGRAMS
    assert all(int(words[peer, gone + 1]) for peer in (0, 2))
    # Who has given up neither waits nor tells again: the next meeting takes no time.
    before = words.clone()
    stage.peer.report.zero_()
    assert failing(stage, device) is None
    assert torch.equal(words, before)


def test_a_peer_in_another_call_is_named(device: str) -> None:
    stage = Stage(2, 0, device)
    stage.come([torch.zeros(1, 7)] * 2, tag=1)
    assert failing(stage, device) == Failure(cause=MISMATCH, peer=1, site=5, number=1)


def test_more_ranks_than_lanes_do_not_meet(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="E-COLL-CUSTOM 64 ranks share a host") as caught:
        choose_on_cuda(
            "custom", plan_of_atoms(64, 64), 0, "", timeout_s=1, device=torch.device("cpu"),
            driver=FileDriver(tmp_path, 0),
        )  # fmt: skip
    assert f"takes {LANES}" in caught.value.message


def test_regions_hold_flags_and_slots_apart() -> None:
    for degree in DEGREES:
        shape = RegionShape(peers=degree, planes=2, programs=PROGRAMS, block=BLOCK)
        assert shape.flags % 16 == 0 and shape.flags >= 8 * (2 * degree * PROGRAMS + degree)
        begins = [shape.flags + slot * shape.slot for slot in range(2 * PROGRAMS + 1)]
        assert all(b - a == 2 * 4 * BLOCK for a, b in pairwise(begins))
        assert begins[-1] == shape.nbytes
