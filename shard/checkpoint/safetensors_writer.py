"""Writing a safetensors file one tensor at a time, with no more than that tensor in memory.

The library's own writer wants all tensors of a file at once. The format allows no holes and readers
want aligned data, so tensors are collected by the width of their elements, widest first.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from .safetensors_file import TORCH_DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
COPY_BYTES = 16 << 20


class SafetensorsWriter:
    """Collects tensors in temporary files beside `path`; `close` makes the file whole."""

    def __init__(self, path: Path, metadata: dict[str, str]) -> None:
        self.path, self.metadata = path, metadata
        self.nbytes = 0
        self._sizes: dict[int, int] = {}
        self._tensors: dict[int, list[tuple[str, torch.dtype, tuple[int, ...], int]]] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        tensor = tensor.contiguous()
        width = tensor.dtype.itemsize
        with self._part(width).open("ab") as file:
            if tensor.numel():
                file.write(tensor.view(-1).view(torch.uint8).numpy().data)
        begin = self._sizes.get(width, 0)
        entry = (name, tensor.dtype, tuple(tensor.shape), begin)
        self._tensors.setdefault(width, []).append(entry)
        self._sizes[width] = begin + tensor.nbytes
        self.nbytes += tensor.nbytes

    def names(self) -> list[str]:
        return [name for entries in self._tensors.values() for name, *_ in entries]

    def close(self) -> None:
        """Write the header and the data behind it, and remove the temporary files."""
        header: dict[str, object] = {"__metadata__": self.metadata}
        widths, base = sorted(self._tensors, reverse=True), 0
        for width in widths:
            for name, dtype, shape, begin in self._tensors[width]:
                size = width
                for length in shape:
                    size *= length
                header[name] = {
                    "dtype": DTYPE_NAMES[dtype],
                    "shape": list(shape),
                    "data_offsets": [base + begin, base + begin + size],
                }
            base += self._sizes[width]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with self.path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for width in widths:
                with self._part(width).open("rb") as part:
                    shutil.copyfileobj(part, file, COPY_BYTES)
                self._part(width).unlink()

    def _part(self, width: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{width}")
