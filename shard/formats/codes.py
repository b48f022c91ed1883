"""Integer codes: their slice of a weight, and packing them into 32-bit words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isobit.errors import DamagedError

from ...kernels.weights.stored_codes import StoredCodes, unpack_words
from ..checkpoint.features import Features, bounds, count, part, places
from ..checkpoint.safetensors_file import SliceReader, TensorEntry
from .scheme import WeightScheme


@dataclass(frozen=True, kw_only=True)
class QuantizedSlice:
    """A rectangle of a quantized weight, before it is laid out for a kernel.

    `stored` are unsigned codes [n, k]: value = scale * (code - zero). They are read when they are
    asked for, and only as long as the reader is open. `groups` int64 [k] is the group of each
    column, counted in the columns of `scales` [n, g] (in the checkpoint's dtype) and of `zeros`
    uint8 [n, g], None when symmetric (8 at 4 bits, 128 at 8). `input_scale` is the static scale of
    int8 activations.
    """

    stored: StoredCodes
    scales: torch.Tensor
    zeros: torch.Tensor | None
    groups: torch.Tensor
    input_scale: float | None = None

    @property
    def codes(self) -> torch.Tensor:
        """All codes, uint8 [n, k]; reads them."""
        return self.stored.codes()


def grown(values: torch.Tensor, shape: tuple[int, int], fill: int) -> torch.Tensor:
    """Return values [a, b] in the corner of a tensor of `shape`, `fill` elsewhere."""
    if tuple(values.shape) == shape:
        return values
    out = torch.full(shape, fill, dtype=values.dtype)
    out[: values.shape[0], : values.shape[1]] = values
    return out


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack uint8 codes [N, K] along K into int32 words [N, ceil(K*bits/32)], low bits first.

    The tail of the last word is filled with raw 0.
    """
    n, k = codes.shape
    per_word = 32 // bits
    words = -(-k // per_word)
    padded = torch.zeros((n, words * per_word), dtype=torch.uint8)
    padded[:, :k] = codes
    if bits == 4:
        pairs = padded.view(n, words * 4, 2)
        padded = pairs[:, :, 0] | (pairs[:, :, 1] << 4)
    return padded.contiguous().view(torch.int32)


@dataclass(frozen=True, kw_only=True)
class WholeWeight:
    """A quantized weight as a whole, in no format's packing.

    `codes` uint8 [N, K]; `scales` [N, G]; `zeros` uint8 [N, G], None when symmetric; `g_idx` int32
    [K] with act-order.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    g_idx: torch.Tensor | None = None
    input_scale: float | None = None


def add_to_words(words: torch.Tensor, number: int) -> torch.Tensor:
    """Add a number to int32 words modulo 2^32."""
    wide = (words.long() + number) & 0xFFFFFFFF
    return torch.where(wide >= 1 << 31, wide - (1 << 32), wide).to(torch.int32)


def bytes_to_words(data: torch.Tensor) -> torch.Tensor:
    """Bytes uint8 [n, b] as int32 words [n, ceil(b/4)]; the tail of the last word is 0."""
    n, width = data.shape
    if not data.numel():
        return torch.empty((n, -(-width // 4)), dtype=torch.int32)
    return pack_words(data, 8) if width % 4 else data.contiguous().view(torch.int32)


def packed_columns(
    reader: SliceReader, entry: TensorEntry, bits: int, rows: Features, columns: Features
) -> StoredCodes:
    """Codes [n, k] of a matrix [N, K*b/32] packed along its second dimension."""
    per_word = 32 // bits
    begin, end = bounds(columns)
    first = begin // per_word
    words = slice(first, -(-end // per_word))
    return StoredCodes(
        bits=bits,
        k_first=False,
        along_k=True,
        rows=torch.arange(count(rows)),
        columns=places(columns, first * per_word),
        read=lambda begin, end: reader.read(entry, part(rows, begin, end), words),
        divisible=isinstance(rows, slice),
    )


def packed_rows(
    reader: SliceReader, entry: TensorEntry, bits: int, rows: Features, columns: Features
) -> StoredCodes:
    """Codes [n, k] of a matrix [K*b/32, N] packed along its first dimension."""
    per_word = 32 // bits
    first = bounds(columns)[0] // per_word
    return StoredCodes(
        bits=bits,
        k_first=True,
        along_k=True,
        rows=torch.arange(count(rows)),
        columns=places(columns, first * per_word),
        read=lambda begin, end: reader.read(entry, slice(first + begin, first + end), rows),
    )


def byte_codes(
    reader: SliceReader, entry: TensorEntry, rows: Features, columns: Features
) -> StoredCodes:
    """Codes [n, k] of a matrix int8 [N, K]: code = value + 128."""

    def read(begin: int, end: int) -> torch.Tensor:
        codes = reader.read(entry, part(rows, begin, end), columns).view(torch.uint8) ^ 128
        return bytes_to_words(codes)

    return StoredCodes(
        bits=8,
        k_first=False,
        along_k=True,
        rows=torch.arange(count(rows)),
        columns=torch.arange(count(columns)),
        read=read,
        divisible=isinstance(rows, slice),
    )


def read_packed_columns(
    reader: SliceReader,
    entry: TensorEntry,
    bits: int,
    rows: Features,
    columns: Features,
    add: int = 0,
) -> torch.Tensor:
    """Read codes [n, k] of a matrix packed along its second dimension.

    `add` is added to each word, with carry from one element into the next.
    """
    per_word = 32 // bits
    begin, end = bounds(columns)
    first = begin // per_word
    words = reader.read(entry, rows, slice(first, -(-end // per_word)))
    if add:
        words = add_to_words(words, add)
    return _take(unpack_words(words, bits), columns, first * per_word)


def read_packed_rows(
    reader: SliceReader, entry: TensorEntry, bits: int, rows: Features, columns: Features
) -> torch.Tensor:
    """Read codes [n, k] of a matrix packed along its first dimension."""
    per_word = 32 // bits
    begin, end = bounds(rows)
    first = begin // per_word
    words = reader.read(entry, slice(first, -(-end // per_word)), columns)
    return _take(unpack_words(words.T, bits), rows, first * per_word).T


def group_index(
    reader: SliceReader, entry: TensorEntry | None, scheme: WeightScheme
) -> torch.Tensor | None:
    """Return g_idx int32 [K], or None where groups are consecutive: it is absent, or says so.

    compressed-tensors writes -1 for one that was never set. Raises DamagedError E-QUANT-GIDX for
    groups that do not exist.
    """
    if entry is None:
        return None
    g_idx, k = reader.read(entry), entry.shape[0]
    consecutive = torch.arange(k) // scheme.group_width(k)
    if bool((g_idx == -1).all()) or torch.equal(g_idx.long(), consecutive):
        return None
    low, high, groups = int(g_idx.min()), int(g_idx.max()), scheme.groups(k)
    if low < 0 or high >= groups:
        raise DamagedError(
            "E-QUANT-GIDX",
            f"{entry.name}: values from {low} to {high}, but there are {groups} groups",
        )
    return g_idx


def column_groups(
    columns: Features, scheme: WeightScheme, k: int, g_idx: torch.Tensor | None
) -> tuple[slice, torch.Tensor]:
    """The range of groups to read for some input features, and each one's group within it.

    With act-order any group may be touched, so all of them are read.
    """
    if g_idx is not None:
        return slice(0, scheme.groups(len(g_idx))), g_idx[columns].long()
    begin, end = bounds(columns)
    width = scheme.group_width(k)
    features = torch.arange(begin, end) if isinstance(columns, slice) else columns
    return slice(begin // width, -(-end // width)), features // width - begin // width


def _take(codes: torch.Tensor, features: Features, first: int) -> torch.Tensor:
    if isinstance(features, slice):
        return codes[:, features.start - first : features.stop - first]
    return codes[:, features - first]
