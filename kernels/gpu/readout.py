"""Reading what a step says: its launches, one copy to the host, one wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..step.buffer import Buffer
from .bound import Bound
from .card import Card
from .jit.readout import finish_lines, read_lines
from .launch import Launch, ceil_div, power_of_2
from .linear import Work
from .reductions import BLOCK_DIGEST, WORDS, digest_value

TENSORS = 3


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What a step is asked for. `hidden` fp32 `[T, W]`, `normed` `[N, W]`, `last` `[L, W]`,
    `logits` fp32 `[L, V]`; the others are in the dtype of the run."""

    hidden: Buffer
    normed: torch.Tensor
    last: Buffer
    logits: Buffer


def step_launches(
    hidden: torch.Tensor,
    normed: torch.Tensor,
    last: torch.Tensor,
    logits: torch.Tensor,
    counts: torch.Tensor,
    out: torch.Tensor,
    work: Work,
) -> list[Launch]:
    """What fills out int64 `[3 + 2 L]`: see jit.readout for it and for what is given.

    Rows beyond counts, int64 `[2]`, are left out.
    """
    (rows, width), (sampled, vocabulary) = hidden.shape, logits.shape
    block = min(BLOCK_DIGEST, power_of_2(max(width, vocabulary)))
    blocks, row_blocks = ceil_div(width, block), ceil_div(vocabulary, block)
    hidden_end = rows * blocks
    normed_end = hidden_end + len(normed) * blocks
    last_end = normed_end + sampled * blocks
    programs = last_end + sampled * row_blocks
    sums = work.empty(programs, dtype=torch.int64, like=hidden)
    keys = work.empty(sampled * row_blocks, dtype=torch.int64, like=hidden)
    shared = {
        "sums": sums,
        "keys": keys,
        "hidden_end": hidden_end,
        "normed_end": normed_end,
        "last_end": last_end,
    }
    lines = {
        "hidden": _words(hidden),
        "normed": _words(normed),
        "last": _words(last),
        "logits": logits,
        "counts": counts,
        "normed_lines": len(normed),
        "width": width,
        "vocabulary": vocabulary,
        "BLOCK": block,
    }
    found = {"out": out, "sampled": sampled, "blocks": row_blocks}
    return [
        Launch(kernel=read_lines, grid=(programs,), arguments=lines | shared),
        Launch(kernel=finish_lines, grid=(TENSORS + sampled,), arguments=found | shared),
    ]


class Readout:
    """Digests of three tensors and of each row of logits, and the greatest of each row."""

    def __init__(self, card: Card, spoken: Spoken, most_sampled: int) -> None:
        self._card, self._spoken = card, spoken
        words = TENSORS + 2 * most_sampled
        self._there = torch.zeros(words, dtype=torch.int64, device=card.device)
        self._host = card.host_memory(self._there.nbytes).view(torch.int64)
        self._logits: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self._there.nbytes

    def items(self, at: Bound) -> Sequence[Launch]:
        """What a list of launches ends with."""
        spoken = self._spoken
        hidden, last, logits = map(at.rows, (spoken.hidden, spoken.last, spoken.logits))
        tensors = (hidden, spoken.normed, last, logits)
        return step_launches(*tensors, at.memory.counts, self._there, at.arena.work())

    def read(
        self, rows: int, sampled: int, padded: int, logits: torch.Tensor | None
    ) -> tuple[list[int], list[int]]:
        """Tokens and digests of the step that was started last, of so many rows; waits once.

        With `logits` fp32 `[sampled, V]` they are copied as well, to where `host_logits` has them.
        """
        used = TENSORS + 2 * padded
        self._card.download(self._there[:used], self._host[:used])
        if logits is not None and sampled:
            self._card.download(logits, self._host_logits(logits))
        self._card.wait()
        words = self._host[:used].tolist()
        spoken, row_bytes = self._spoken, 4 * self._spoken.logits.width
        sizes = (
            rows * spoken.hidden.row_bytes,
            spoken.normed.nbytes,
            sampled * spoken.last.row_bytes,
        )
        sums = words[TENSORS + padded :][:sampled]
        digests = [digest_value(word, size, 0) for word, size in zip(words, sizes, strict=False)]
        digests += [digest_value(word, row_bytes, 0) for word in sums]
        return words[TENSORS : TENSORS + sampled], digests

    def host_logits(self, sampled: int) -> torch.Tensor:
        """Logits fp32 `[sampled, V]` that `read` copied; good until the next copy."""
        assert self._logits is not None
        return self._logits[:sampled]

    def _host_logits(self, logits: torch.Tensor) -> torch.Tensor:
        if self._logits is None or len(self._logits) < len(logits):
            memory = self._card.host_memory(logits.nbytes)
            self._logits = memory.view(torch.float32).view(logits.shape)
        return self._logits[: len(logits)]


class StepOutcome:
    """As kernels.reductions.Outcome, of the last step of a program that reads itself out."""

    def __init__(self, readout: Readout, hidden: torch.Tensor, rows: torch.Tensor, padded: int):
        """`hidden` and `rows`, the logits, are those of the step, whose sampled rows were
        `padded`."""
        self.tensors, self.rows = (hidden,), rows
        self._readout, self._padded = readout, padded

    def read(self, digests: bool, keep_rows: bool = False) -> tuple[list[int], list[int]]:
        """See Outcome; waits for the device once."""
        hidden, rows = self.tensors[0], self.rows
        tokens, found = self._readout.read(
            len(hidden), len(rows), self._padded, rows if keep_rows else None
        )
        return tokens, found if digests else []

    @property
    def host_rows(self) -> torch.Tensor:
        """See Outcome."""
        if not len(self.rows):
            return torch.empty(self.rows.shape)
        return self._readout.host_logits(len(self.rows))


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(WORDS[tensor.element_size()])
