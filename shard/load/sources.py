"""Where a rank's weights come from: a checkpoint, or random numbers of a config's shape."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch

from ...kernels.weights.stored_codes import StoredCodes
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features, bounds, count, part, places
from ..checkpoint.safetensors_file import SliceReader
from ..formats import QuantizedSlice, bitsandbytes, dense, quantized_format
from ..formats.codes import bytes_to_words, column_groups
from ..formats.scheme import WeightScheme
from ..mixing import mix
from ..model.spec import ModelSpec
from ..plan.modules import LinearModule
from .act_order import mlp_order


class WeightSource(Protocol):
    """Gives slices of the weights of one model."""

    @property
    def name(self) -> str: ...

    @property
    def bytes_read(self) -> int: ...

    def vector(self, name: str, size: int) -> torch.Tensor:
        """A bias or norm weight, [size]."""
        ...

    def has_other_bias(self, module: LinearModule) -> bool:
        """Whether there is a bias other than zero for a module that has none by the config."""
        ...

    def dense(
        self, module: LinearModule, scheme: WeightScheme | None, rows: Features, columns: Features
    ) -> torch.Tensor:
        """A rectangle of a weight that is dense, or becomes dense while loading."""
        ...

    def quantized(
        self, module: LinearModule, scheme: WeightScheme, rows: Features, columns: Features
    ) -> QuantizedSlice:
        """A rectangle of a quantized weight."""
        ...

    def mlp_order(self, layer: int) -> torch.Tensor | None:
        """See act_order.mlp_order."""
        ...


class StoredWeights:
    """The tensors of a checkpoint, read by slice."""

    def __init__(self, checkpoint: Checkpoint, reader: SliceReader, spec: ModelSpec) -> None:
        self._checkpoint, self._reader, self._spec = checkpoint, reader, spec

    @property
    def name(self) -> str:
        return str(self._checkpoint.folder)

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    def vector(self, name: str, size: int) -> torch.Tensor:
        return self._reader.read_range(self._checkpoint.entries[name], 0, size)

    def has_other_bias(self, module: LinearModule) -> bool:
        entry = self._checkpoint.entries.get(f"{module.name}.bias")
        return entry is not None and bool(self._reader.read(entry).any())

    def dense(
        self, module: LinearModule, scheme: WeightScheme | None, rows: Features, columns: Features
    ) -> torch.Tensor:
        if scheme is None:
            return dense.read_slice(self._checkpoint, self._reader, module.name, rows, columns)
        return bitsandbytes.read_nf4(
            self._checkpoint, self._reader, module.name, module.k, rows, columns
        )

    def quantized(
        self, module: LinearModule, scheme: WeightScheme, rows: Features, columns: Features
    ) -> QuantizedSlice:
        form = quantized_format(scheme.format)
        return form.read_slice(self._checkpoint, self._reader, module.name, scheme, rows, columns)

    def mlp_order(self, layer: int) -> torch.Tensor | None:
        return mlp_order(self._checkpoint, self._reader, self._spec, layer)


class DummyWeights:
    """Random weights of a config's shape (`--load-format dummy`): for timing, without a file.

    An element depends on its place alone, so every degree has the same model. Spread is
    K^-0.5, so that activations keep their size from layer to layer.
    """

    name = "dummy weights"
    bytes_read = 0

    def vector(self, name: str, size: int) -> torch.Tensor:
        return torch.ones(size) if name.endswith("norm.weight") else torch.zeros(size)

    def has_other_bias(self, module: LinearModule) -> bool:
        del module
        return False

    def dense(
        self, module: LinearModule, scheme: WeightScheme | None, rows: Features, columns: Features
    ) -> torch.Tensor:
        del scheme
        assert isinstance(columns, slice)
        pairs = slice(2 * columns.start, 2 * columns.stop)
        numbers = _random_bytes(module.name, 2 * module.k, rows, pairs)
        spread = module.k**-0.5 * 3**0.5 / 2**15
        halves = numbers.flatten().view(torch.int16).view(len(numbers), count(columns))
        return halves.float() * spread

    def quantized(
        self, module: LinearModule, scheme: WeightScheme, rows: Features, columns: Features
    ) -> QuantizedSlice:
        taken, groups = column_groups(columns, scheme, module.k, None)
        per_word = 32 // scheme.bits
        words_a_row = -(-module.k // per_word)
        begin, end = bounds(columns)
        first = begin // per_word
        words = slice(4 * first, -(-end // per_word) * 4)
        stored = StoredCodes(
            bits=scheme.bits,
            k_first=False,
            along_k=True,
            rows=torch.arange(count(rows)),
            columns=places(columns, first * per_word),
            read=lambda begin, end: bytes_to_words(
                _random_bytes(module.name, words_a_row * 4, part(rows, begin, end), words)
            ),
        )
        width = (2**scheme.bits - 1) / 12**0.5
        scales = torch.full((count(rows), taken.stop - taken.start), module.k**-0.5 / width)
        static = 0.05 if scheme.activation == "int8-static" else None
        return QuantizedSlice(
            stored=stored, scales=scales.half(), zeros=None, groups=groups, input_scale=static
        )

    def mlp_order(self, layer: int) -> torch.Tensor | None:
        del layer
        return None


def _random_bytes(name: str, pitch: int, rows: Features, columns: Features) -> torch.Tensor:
    """Bytes uint8 of a matrix of rows of `pitch` bytes, from its name and the place of each."""
    assert isinstance(rows, slice)
    assert isinstance(columns, slice)
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    first, last = columns.start // 8, -(-columns.stop // 8)
    words = -(-pitch // 8)
    place = np.arange(rows.start, rows.stop, dtype=np.uint64)[:, None] * np.uint64(words)
    place = place + np.arange(first, last, dtype=np.uint64)[None, :]
    numbers = mix(place + np.uint64(seed)).view(np.uint8).reshape(len(place), 8 * (last - first))
    left = columns.start - first * 8
    width = columns.stop - columns.start
    return torch.from_numpy(np.ascontiguousarray(numbers[:, left : left + width]))
