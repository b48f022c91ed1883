"""Writing a model folder: to a temporary name first, renamed when it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from isobit.errors import InputError

from .checkpoint import INDEX, SINGLE
from .safetensors_writer import SafetensorsWriter
from .write_file import check_new_folder, copy_file, folder_to_be, write_errors

CARRIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
NOT_CARRIED = {"config.json", INDEX}
FILE_BYTES = 2 << 30


class FolderWriter:
    """Writes tensors into safetensors files of about FILE_BYTES each.

    Use as a context manager; `finish` makes the folder appear under its name, and leaving the
    block without it removes everything. Modes are those that the umask gives, and of files carried
    over no wider than the source's. `note` goes into the metadata of every file. Files grow in
    `within`, a folder on the disk of `out`, or beside `out`. Raises what check_new_folder does, and
    InputError E-OUT-WRITE when the system refuses, as on a full disk.
    """

    def __init__(self, out: Path, note: str, within: Path | None = None) -> None:
        check_new_folder(out)
        self.out = out
        self._metadata = {"format": "pt", "isobit": note}
        self._leaving = ExitStack()
        with write_errors(out):
            self._folder = self._leaving.enter_context(folder_to_be(out, within))
        self._files: list[SafetensorsWriter] = []

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving.close()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        with write_errors(self.out):
            self._add(name, tensor)

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        if not self._files or self._files[-1].nbytes + tensor.nbytes > FILE_BYTES:
            if self._files:
                self._files[-1].close()
            path = self._folder / f"part-{len(self._files) + 1}"
            self._files.append(SafetensorsWriter(path, self._metadata))
        self._files[-1].add(name, tensor)

    def finish(
        self, config: dict[str, Any], source: Path, others: Mapping[str, Any] | None = None
    ) -> int:
        """Write config.json, carry over tokenizer files from `source`, rename; return bytes.

        `others` are contents of more JSON files by name, which take the place of the source's.
        """
        with write_errors(self.out):
            return self._finish(config, source, others or {})

    def _finish(self, config: dict[str, Any], source: Path, others: Mapping[str, Any]) -> int:
        self._files[-1].close()
        if len(self._files) == 1:
            self._files[0].path.rename(self._folder / SINGLE)
        else:
            self._write_index()
        (self._folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for pattern in CARRIED:
            for path in source.glob(pattern):
                target = self._folder / path.name
                # Patterns overlap, and what is no file cannot be read to its end.
                if path.name not in NOT_CARRIED and path.is_file() and not target.exists():
                    copy_file(path, target)
        for name, contents in others.items():
            (self._folder / name).write_text(json.dumps(contents, indent=2) + "\n")
        try:
            self._folder.rename(self.out)
        except OSError as error:
            raise InputError("E-OUT-EXISTS", f"{self.out}: appeared meanwhile ({error})") from error
        return sum(file.nbytes for file in self._files)

    def _write_index(self) -> None:
        weight_map, count = {}, len(self._files)
        for number, file in enumerate(self._files, 1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            file.path.rename(self._folder / name)
            weight_map |= dict.fromkeys(file.names(), name)
        total = sum(file.nbytes for file in self._files)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
