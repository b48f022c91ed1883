"""A weight in the memory of a GPU, laid out for the matrix unit.

Packed k is made of chunks of 128. Every run of one scale begins on a unit and every segment on a
chunk; what fills them up has codes equal to the zero point and activation 0, and adds nothing,
exactly. Where no run is longer than a chunk, all units (32, 64 or 128 k) are runs of their own;
else every run is whole chunks, and `run_chunks` says which.

| kind | data |
|---|---|
| int4 | int32 `[tiles, chunks, 64, 16]`: nibble j of word i is k = 16 j + i |
| int8 | int32 `[tiles, chunks, 64, 32]`: byte j of word i is k = 32 j + i |
| int8 under int8 activations | int8 `[Np, Kp]`, the code minus 128 |
| bfloat16, float16 | the values `[Np, Kp]` |

A tile is 64 output columns; there is an even number of tiles, Np columns in all, so that blocks of
64 and of 128 columns read nothing outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILE = 64
CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class GpuWeight:
    """What `layout.to_gpu` makes of a PackedWeight: N output features over K activations.

    R runs in chunks of 128 k, S segments; see the module for `data`.
    """

    kind: str
    n: int
    k: int
    packed_k: int
    data: torch.Tensor
    offsets: torch.Tensor
    """int32 `[S + 1]`: where segments begin, in runs if `run_chunks` is given, else in chunks."""
    tables: torch.Tensor | None = None
    """int32 `[tiles, R, fields, 64]`. One field: the 16 bits of the scale, the zero point above
    them. Two: the bits of an fp32 scale, the zero point. None for dense weights and for those under
    int8 activations."""
    scale_dtype: torch.dtype | None = None
    zeros: bool = False
    """Whether the zero points of the tables are read; without, they are 8 or 128."""
    unit: int = CHUNK
    run_chunks: torch.Tensor | None = None
    """int32 `[R + 1]`."""
    gather: torch.Tensor | None = None
    """int32 `[Kp]`: packed position to activation index, -1 for padding; None for the identity."""
    activation: str = "float"
    input_scale: float | None = None
    column_scales: torch.Tensor | None = None
    """fp32 `[S, Np]`, for int8 activations."""

    @property
    def segments(self) -> int:
        return len(self.offsets) - 1

    @property
    def chunks(self) -> int:
        return self.packed_k // CHUNK

    @property
    def runs(self) -> int:
        return 0 if self.tables is None else self.tables.shape[1]

    @property
    def bits(self) -> int:
        """Of a code; 16 for dense weights."""
        return {"int4": 4, "int8": 8}.get(self.kind, 16)

    @property
    def tensors(self) -> list[torch.Tensor]:
        some = (self.tables, self.run_chunks, self.gather, self.column_scales)
        return [self.data, self.offsets, *(one for one in some if one is not None)]

    def columns(self, begin: int, end: int) -> list[torch.Tensor]:
        """What is stored of some output columns: copies of their codes or values, and of scales and
        zero points."""
        found = [self.data]
        if self.data.dim() == 4:
            found = [self.data.transpose(1, 2)]
        if self.tables is not None:
            found.append(self.tables.permute(0, 3, 1, 2))
        if self.column_scales is not None:
            found.append(self.column_scales.T)
        return [
            one.reshape(self.data.shape[0] * (TILE if self.data.dim() == 4 else 1), -1)[begin:end]
            for one in found
        ]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.tensors)
