"""What changes from step to step, in device tensors that stay where they are: one copy a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..step.kv_cache import PAGE
from ..step.step import Step
from .card import Card
from .shape import Shape

ALIGNMENT = 64


class StepMemory:
    """The rows of a step, padded to a shape, for steps of up to `rows` rows.

    On the device, as in `Step`: `tokens`, `slots`, `sampled` int64, `positions`, `sequence` int32,
    all `[rows]`. `chunks` int32 `[rows, 2]`, `last` int64 `[1]`, the last row, `counts` int64
    `[2]`, the rows and the sampled rows that are not padding, and `tables` int32
    `[rows, pages]`, one of every sequence that has rows in this step.

    Rows beyond the step have token 0 at position 0 and write to `spare_page`, of which no table
    knows; chunks beyond are empty. Sampled rows beyond repeat row 0.
    """

    def __init__(self, card: Card, rows: int, pages: int, spare_page: int) -> None:
        self._card, self._spare_slot = card, spare_page * PAGE
        # Tables last: a copy ends behind those of the sequences of a step.
        sizes = {
            "last": (torch.int64, (1,)),
            "counts": (torch.int64, (2,)),
            "tokens": (torch.int64, (rows,)),
            "slots": (torch.int64, (rows,)),
            "sampled": (torch.int64, (rows,)),
            "positions": (torch.int32, (rows,)),
            "sequence": (torch.int32, (rows,)),
            "chunks": (torch.int32, (rows, 2)),
            "tables": (torch.int32, (rows, pages)),
        }
        begins, end = {}, 0
        for name, (dtype, shape) in sizes.items():
            begins[name] = -(-end // ALIGNMENT) * ALIGNMENT
            end = begins[name] + torch.Size(shape).numel() * dtype.itemsize
        self._tables_begin = begins["tables"]
        self._host = card.host_memory(end)
        self._there = torch.zeros(end, dtype=torch.uint8, device=card.device)

        def views(memory: torch.Tensor) -> dict[str, torch.Tensor]:
            return {
                name: memory[begins[name] :][: torch.Size(shape).numel() * dtype.itemsize]
                .view(dtype)
                .view(shape)
                for name, (dtype, shape) in sizes.items()
            }

        self._on_host, there = views(self._host), views(self._there)
        self.counts = there["counts"]
        self.last, self.tokens, self.slots = there["last"], there["tokens"], there["slots"]
        self.sampled, self.positions = there["sampled"], there["positions"]
        self.sequence, self.chunks = there["sequence"], there["chunks"]
        self.tables = there["tables"]

    def write(self, step: Step, shape: Shape, chunks: Sequence[tuple[int, int]]) -> None:
        """Begin to copy a step that was checked."""
        self._card.wait_for_upload()
        sequences: list[int] = step.sequence.tolist()
        place: dict[int, int] = {}
        for sequence in sequences:
            place.setdefault(sequence, len(place))
        self._fill("last", torch.tensor([step.rows - 1]), 1, 0)
        self._fill("counts", torch.tensor([step.rows, step.sampled_rows]), 2, 0)
        self._fill("tokens", step.tokens, shape.rows, 0)
        self._fill("slots", step.slots, shape.rows, self._spare_slot)
        self._fill("sampled", step.sampled, shape.sampled, 0)
        self._fill("positions", step.positions, shape.rows, 0)
        renamed = torch.tensor([place[sequence] for sequence in sequences])
        self._fill("sequence", renamed, shape.rows, 0)
        self._fill("chunks", torch.tensor(chunks).view(-1, 2), shape.chunks, 0)
        tables = self._on_host["tables"]
        width = min(step.block_tables.shape[1], tables.shape[1])
        tables[: len(place), :width] = step.block_tables[list(place), :width]
        end = self._tables_begin + len(place) * tables.shape[1] * tables.itemsize
        self._card.upload(self._host[:end], self._there[:end])

    @property
    def nbytes(self) -> int:
        return self._there.nbytes

    def _fill(self, name: str, values: torch.Tensor, padded: int, filler: int) -> None:
        there = self._on_host[name]
        there[: len(values)] = values
        there[len(values) : padded] = filler
