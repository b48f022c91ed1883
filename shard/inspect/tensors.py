"""Reading every tensor once at the speed of the disk, and what is wrong with its numbers.

A piece is counted right after it is read, while it is still in the processor's cache; torch counts
several GB/s in it, so that reading stays the slower half.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.errors import DamagedError, InputError

from ..checkpoint.safetensors_file import TensorEntry
from ..checkpoint.safetensors_header import open_regular

PIECE_BYTES = 2 << 20


class TensorStream:
    """Reads tensors with pread into buffers that are used again and again. One per thread."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._descriptors: dict[Path, int] = {}
        self._buffers: dict[str, torch.Tensor] = {}

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def pieces(self, entry: TensorEntry) -> Iterator[torch.Tensor]:
        """The bytes of a tensor, uint8, piece by piece; a piece is valid until the next one.

        Raises InputError E-CKPT-TRUNCATED and E-CKPT-MISSING, as `whole` does.
        """
        buffer = self._buffer("piece", min(PIECE_BYTES, entry.nbytes))
        for begin in range(0, entry.nbytes, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, entry.nbytes - begin)]
            self._fill(entry, begin, piece)
            yield piece

    def whole(
        self,
        entry: TensorEntry,
        slot: str,
        each: Callable[[torch.Tensor], None] = lambda piece: None,
    ) -> torch.Tensor:
        """A tensor as a whole, valid until the next one of the same slot.

        `each` is called with every piece of its bytes.
        """
        buffer = self._buffer(slot, entry.nbytes)
        for begin in range(0, entry.nbytes, PIECE_BYTES):
            piece = buffer[begin : min(begin + PIECE_BYTES, entry.nbytes)]
            self._fill(entry, begin, piece)
            each(piece)
        return buffer[: entry.nbytes].view(entry.dtype).view(entry.shape)

    def _buffer(self, slot: str, size: int) -> torch.Tensor:
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[slot] = torch.empty(size, dtype=torch.uint8)
        return buffer

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = open_regular(file)
        return self._descriptors[file]

    def _fill(self, entry: TensorEntry, offset: int, piece: torch.Tensor) -> None:
        try:
            descriptor = self._descriptor(entry.file)
            view, at = piece.numpy().data, entry.begin + offset
            while view.nbytes:
                count = os.preadv(descriptor, [view], at)
                if count == 0:
                    raise DamagedError(
                        "E-CKPT-TRUNCATED",
                        f"{entry.file}: ended while reading {entry.name} at byte {at}",
                    )
                view, at = view[count:], at + count
        except OSError as error:
            raise InputError(
                "E-CKPT-MISSING", f"{entry.file}: cannot be read ({error.strerror})"
            ) from error
        self._advance(piece.numel())


@dataclass(kw_only=True)
class NumberCount:
    """NaN and infinite values of a tensor, and the largest magnitude among the others.

    `zero_run` is how many values lie in whole pieces of zeros.
    """

    nan: int = 0
    infinite: int = 0
    largest: float = 0.0
    values: int = 0
    zero_run: int = 0

    @property
    def all_zero(self) -> bool:
        """Whether there are numbers and all of them are 0."""
        return self.values > 0 and not (self.nan or self.infinite or self.largest)

    def add(self, values: torch.Tensor) -> None:
        """Count some values. Both ends are finite as a rule, and then no more is to be done."""
        self.values += values.numel()
        low, high = (float(end) for end in torch.aminmax(values))
        if low == high == 0 and values.nbytes == PIECE_BYTES:
            self.zero_run += values.numel()
        if not (abs(low) < torch.inf and abs(high) < torch.inf):
            nan = int(values.isnan().sum())
            self.nan += nan
            self.infinite += int((~values.isfinite()).sum()) - nan
            values = values[values.isfinite()]
            if not values.numel():
                return
            low, high = (float(end) for end in torch.aminmax(values))
        self.largest = max(self.largest, abs(low), abs(high))


def count_numbers(stream: TensorStream, entry: TensorEntry) -> NumberCount:
    """Read a tensor and look at its numbers; integers are read and not looked at."""
    count = NumberCount()
    for piece in stream.pieces(entry):
        if entry.dtype.is_floating_point:
            values = piece.view(entry.dtype)
            count.add(values if entry.dtype.itemsize > 1 else values.float())
    return count
