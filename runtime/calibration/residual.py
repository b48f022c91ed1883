"""The residual stream of all samples between two layers: one safetensors file, read by sample."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from ...shard.checkpoint.safetensors_file import SliceReader, read_header
from ...shard.checkpoint.write_file import write_errors

NAME = "residual"


class ResidualWriter:
    """Makes a file for float32 [samples * length, hidden] and fills it sample by sample."""

    def __init__(self, path: Path, samples: int, length: int, hidden: int) -> None:
        """Take the space at once; raises InputError E-OUT-WRITE when the disk has less."""
        self.path, self._bytes = path, 4 * length * hidden
        size = samples * self._bytes
        entry = {"dtype": "F32", "shape": [samples * length, hidden], "data_offsets": [0, size]}
        text = json.dumps({NAME: entry}).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        self._begin = len(head)
        with write_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.pwrite(self._file, head, 0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, self._begin + size)

    def write(self, sample: int, values: torch.Tensor) -> None:
        """Put a sample float32 [length, hidden] in its place. Raises InputError E-OUT-WRITE."""
        view = values.contiguous().view(-1).view(torch.uint8).numpy().data
        assert view.nbytes == self._bytes
        offset = self._begin + sample * self._bytes
        with write_errors(self.path):
            while view.nbytes:
                written = os.pwrite(self._file, view, offset)
                offset, view = offset + written, view[written:]

    def close(self) -> None:
        """Have it on the disk. Safe to call twice; raises InputError E-OUT-WRITE."""
        if self._file >= 0:
            file, self._file = self._file, -1
            try:
                with write_errors(self.path):
                    os.fsync(file)
            finally:
                os.close(file)


class ResidualReader:
    """Reads samples float32 [length, hidden] of such a file; keeps it open until closed."""

    def __init__(self, path: Path, length: int) -> None:
        self._length, self._reader = length, SliceReader()
        (self._entry,) = read_header(path)

    def read(self, sample: int) -> torch.Tensor:
        rows = slice(sample * self._length, (sample + 1) * self._length)
        return self._reader.read(self._entry, rows)

    def close(self) -> None:
        self._reader.close()
