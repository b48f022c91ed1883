"""Where a rank puts the tensors of a trace: one safetensors file, never more than one in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from isobit.errors import InputError

from ...shard.checkpoint.safetensors_writer import SafetensorsWriter


def values_name(rank: int) -> str:
    """The name of a rank's file of values."""
    return f"rank-{rank}.safetensors"


def tensor_name(step: int, site: str) -> str:
    """The name of a tensor in it."""
    return f"{step}/{site}"


class ValuesWriter:
    """Writes tensors [T, columns of this rank] as they come, in the dtype they have.

    Raises InputError E-TRACE-FOLDER when the folder is not there, E-TRACE-DISK when the system
    refuses to write.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        if not folder.is_dir():
            raise InputError(
                "E-TRACE-FOLDER",
                f"{folder}: rank {rank} does not see this folder. Ranks write values themselves: "
                "give a folder that all hosts share",
            )
        self._folder, self._open = folder, True
        self._file = SafetensorsWriter(folder / values_name(rank), {"format": "pt"})

    def add(self, step: int, site: str, tensor: torch.Tensor) -> None:
        try:
            self._file.add(tensor_name(step, site), tensor.cpu())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Make the file whole; a second time does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            self._file.close()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> InputError:
        return InputError("E-TRACE-DISK", f"{self._folder}: cannot be written ({error})")
