"""Tensors in a file for a moment, so that the loader of every rank can read them back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ...shard.checkpoint.checkpoint import SINGLE, Checkpoint
from ...shard.checkpoint.safetensors_file import read_header
from ...shard.checkpoint.safetensors_writer import SafetensorsWriter
from ...shard.checkpoint.write_file import write_errors


@contextmanager
def stored_tensors(tensors: Mapping[str, torch.Tensor], out: Path) -> Iterator[Checkpoint]:
    """A checkpoint of some tensors, beside `out` while the block lasts."""
    prefix, parent = f".{out.name}.", out.absolute().parent
    with write_errors(out), tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        file = SafetensorsWriter(Path(name) / SINGLE, {"format": "pt"})
        for each, tensor in tensors.items():
            file.add(each, tensor)
        file.close()
        entries = {entry.name: entry for entry in read_header(file.path)}
        yield Checkpoint(folder=Path(name), entries=entries)
