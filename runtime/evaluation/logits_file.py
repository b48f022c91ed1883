"""Logits of one run kept for another: raw float32 rows in a file of known size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isobit.errors import EnvironmentFault, InputError

VALUE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class LogitsFile:
    """A file of rows float32 [vocabulary], which the driver makes and rank 0 fills and reads."""

    path: Path
    vocabulary: int

    def reserve(self, rows: int) -> None:
        """Make the file, for its owner alone, and take its space on the disk.

        Raises InputError E-EVAL-DISK when the disk has less.
        """
        size, free = rows * self.vocabulary * VALUE_BYTES, shutil.disk_usage(self.path.parent).free
        refused = InputError(
            "E-EVAL-DISK",
            f"{self.path.parent}: {rows} positions x {self.vocabulary} logits of the reference x "
            f"{VALUE_BYTES} bytes = {size} bytes, {free} bytes are free. Give fewer --samples or a "
            "smaller --length or fewer --turns, or set TMPDIR to a larger disk",
        )
        if size > free:
            raise refused
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            raise refused from error
        finally:
            os.close(file)

    def write(self, rows: Sequence[int], logits: np.ndarray) -> None:
        """Put float32 logits [L, vocabulary] at `rows`; raises EnvironmentFault E-EVAL-FILE."""
        try:
            with self.path.open("r+b") as file:
                for row, values in zip(rows, logits, strict=True):
                    file.seek(row * self.vocabulary * VALUE_BYTES)
                    file.write(values.tobytes())
        except OSError as error:
            raise self._unusable(error) from error

    def read(self, row: int) -> np.ndarray:
        """The logits at `row`, float32 [vocabulary]; raises EnvironmentFault E-EVAL-FILE."""
        size = self.vocabulary * VALUE_BYTES
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(row * size)
                data = file.read(size)
        except OSError as error:
            raise self._unusable(error) from error
        if len(data) != size:
            raise self._unusable(f"row {row} has {len(data)} of {size} bytes")
        return np.frombuffer(data, dtype=np.float32)

    def _unusable(self, reason: object) -> EnvironmentFault:
        return EnvironmentFault("E-EVAL-FILE", f"logits of the reference, {self.path}: {reason}")
