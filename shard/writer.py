"""Writing a model folder: to a temporary name first, renamed when it is whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file

from ..kernels.errors import InputError
from .checkpoint import INDEX, SINGLE

CARRIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
NOT_CARRIED = {"config.json", INDEX, "quantize_config.json"}
FILE_BYTES = 2 << 30


class FolderWriter:
    """Collects tensors into safetensors files of at most FILE_BYTES each.

    Use as a context manager; `finish` makes the folder appear under its name, and leaving the
    block without it removes everything. Raises InputError E-OUT-EXISTS, E-OUT-PARENT.
    """

    def __init__(self, out: Path) -> None:
        if out.exists():
            raise InputError(
                "E-OUT-EXISTS", f"{out}: already exists. Remove it or choose another folder"
            )
        if not out.absolute().parent.is_dir():
            raise InputError("E-OUT-PARENT", f"{out.absolute().parent}: no such folder")
        self.out = out
        self._folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        self._waiting: dict[str, torch.Tensor] = {}
        self._waiting_bytes = 0
        self._files: list[list[str]] = []
        self._total = 0

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self._waiting_bytes + tensor.nbytes > FILE_BYTES:
            self._flush()
        self._waiting[name] = tensor.contiguous()
        self._waiting_bytes += tensor.nbytes

    def finish(self, config: dict[str, Any], source: Path) -> int:
        """Write config.json, carry over tokenizer files from `source`, rename; return bytes."""
        self._flush()
        if len(self._files) == 1:
            (self._folder / "part-1").rename(self._folder / SINGLE)
        else:
            self._write_index()
        (self._folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for pattern in CARRIED:
            for path in source.glob(pattern):
                if path.name not in NOT_CARRIED:
                    shutil.copyfile(path, self._folder / path.name)
        for path in self._folder.iterdir():
            path.chmod(0o644)
        self._folder.chmod(0o755)
        try:
            self._folder.rename(self.out)
        except OSError as error:
            raise InputError("E-OUT-EXISTS", f"{self.out}: appeared meanwhile ({error})") from error
        return self._total

    def _flush(self) -> None:
        if not self._waiting:
            return
        self._files.append(list(self._waiting))
        part = self._folder / f"part-{len(self._files)}"
        save_file(self._waiting, part, metadata={"format": "pt"})
        self._total += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0

    def _write_index(self) -> None:
        weight_map, count = {}, len(self._files)
        for number, names in enumerate(self._files, 1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            (self._folder / f"part-{number}").rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
