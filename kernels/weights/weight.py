"""The canonical form of a weight in memory. Every checkpoint format becomes this while loading.

`data` is made of lines that belong to one tile of 64 output columns, 4 bytes a column; the first
dimension counts tiles, the second lines along packed K. A kernel takes a line as strips of 16
columns, one vector each, and reads the strips of a tile as one stream:

| kind | shape and dtype | a line |
|---|---|---|
| int4 | int32 `[tiles, Kp/8, 64]` | 8 k; a word per column: nibbles of k=0,2,4,6, then k=1,3,5,7 |
| int8 | uint8 `[tiles, Kp/4, 64, 4]` | 4 k; the bytes per column of k=0..3 |
| bfloat16 | bfloat16 `[tiles, Kp/2, 64, 2]` | 2 k; the pair k=0,1 per column |
| float16, float32 | `[tiles, Kp, 64]` | one k (float16: half a line) |

A run is a stretch of packed k with one row of scales, and begins on a line. Where its length is not
a whole number of lines it is filled with codes equal to the zero point, and `gather` names
activation -1, which counts as 0. Columns beyond N hold the zero point and scale 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from isobit.errors import InputError

from ..native import TILE

LINE_K = {"int4": 8, "int8": 4, "bfloat16": 2, "float16": 1, "float32": 1}
WORD_SHAPE = {"int4": (), "int8": (4,), "bfloat16": (2,), "float16": (), "float32": ()}
DATA_DTYPE = {
    "int4": torch.int32,
    "int8": torch.uint8,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
MIDDLE = {"int4": 8, "int8": 128}
ACTIVATIONS = ("float", "int8")
MOST_K = (2**31 - 1) // 128**2  # products of two int8, each up to 128 * 128, that fit in an int32


def bad(thing: str, found: object, wanted: object) -> InputError:
    return InputError("E-KERNEL-SHAPE", f"{thing} is {found}; it must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """A weight of N output features over K activations, in tiles and lines (see the module).

    R runs, S segments; a segment is one atom's part of K and owns consecutive runs. A dense segment
    is at most one run. Raises InputError E-KERNEL-SHAPE when the parts do not fit each other.
    """

    kind: str
    n: int
    k: int
    data: torch.Tensor
    scales: torch.Tensor | None
    """`[tiles, R, 64]` fp32, fp16 or bf16; None for dense weights."""
    zeros: torch.Tensor | None
    """uint8 `[tiles, R, 64]`; None stands for 8 (int4) or 128 (int8) everywhere."""
    run_offsets: torch.Tensor
    """int32 `[R + 1]`, in packed k."""
    segment_offsets: torch.Tensor
    """int32 `[S + 1]`, in runs."""
    gather: torch.Tensor | None
    """int32 `[Kp]`: packed position to activation index, -1 for padding; None for the identity."""
    activation: str = "float"
    """float, or int8 where activations are quantized on the fly: for symmetric int8 weights whose
    segments are at most one run of at most 131071 features each."""
    input_scale: float | None = None
    """The scale of int8 activations; None for one per row and segment, from its values."""

    def __post_init__(self) -> None:
        if self.kind not in LINE_K:
            raise bad("the kind of a weight", self.kind, f"one of {', '.join(LINE_K)}")
        lines, rest = divmod(self.packed_k, LINE_K[self.kind])
        shape = (self.tiles, lines, TILE, *WORD_SHAPE[self.kind])
        if rest or self.data.shape != shape or self.data.dtype != DATA_DTYPE[self.kind]:
            found = f"{self.data.dtype} {tuple(self.data.shape)}"
            raise bad(
                f"the data of a {self.kind} weight", found, f"{DATA_DTYPE[self.kind]} {shape}"
            )
        self._check_offsets()
        self._check_tables()
        self._check_activation()
        if not all(t.is_contiguous() for t in self.tensors):
            raise bad("a tensor of a packed weight", "strided", "contiguous")

    def _check_offsets(self) -> None:
        runs, segments = self.run_offsets, self.segment_offsets
        for name, offsets in (("run_offsets", runs), ("segment_offsets", segments)):
            if offsets.dtype != torch.int32 or offsets.dim() != 1 or len(offsets) == 0:
                raise bad(name, f"{offsets.dtype} {tuple(offsets.shape)}", "int32 [offsets]")
            if int(offsets[0]) != 0 or bool((offsets.diff() < 0).any()):
                raise bad(name, offsets.tolist(), "ascending from 0")
        if int(segments[-1]) != len(runs) - 1:
            raise bad("the last segment offset", int(segments[-1]), f"{len(runs) - 1}, the runs")
        if bool((runs % LINE_K[self.kind]).any()):
            raise bad("run_offsets", runs.tolist(), f"multiples of {LINE_K[self.kind]}")
        if self.kind not in MIDDLE and bool((segments.diff() > 1).any()):
            raise bad("a dense segment", "several runs", "one run or none")

    def _check_tables(self) -> None:
        table = (self.tiles, self.runs, TILE)
        if (self.kind in MIDDLE) != (self.scales is not None):
            raise bad(f"scales of a {self.kind} weight", "missing or present", "the other")
        if self.scales is not None and self.scales.shape != table:
            raise bad("scales", tuple(self.scales.shape), table)
        zeros = self.zeros
        if zeros is not None and (zeros.shape != table or zeros.dtype != torch.uint8):
            raise bad("zeros", f"{zeros.dtype} {tuple(zeros.shape)}", f"uint8 {table}")
        if self.gather is None:
            if self.packed_k != self.k:
                raise bad("packed K without a gather", self.packed_k, self.k)
            return
        if self.gather.dtype != torch.int32 or self.gather.shape != (self.packed_k,):
            found = f"{self.gather.dtype} {tuple(self.gather.shape)}"
            raise bad("gather", found, f"int32 ({self.packed_k},)")
        if self.packed_k and not -1 <= int(self.gather.min()) <= int(self.gather.max()) < self.k:
            raise bad("gather", "out of range", f"between -1 and {self.k - 1}")

    def _check_activation(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise bad("the activation of a weight", self.activation, " or ".join(ACTIVATIONS))
        scale = self.input_scale
        if self.activation == "float":
            if scale is not None:
                raise bad("input_scale", scale, "None unless the activation is int8")
            return
        if self.kind != "int8" or self.zeros is not None:
            zeros = "" if self.zeros is None else " with zeros"
            raise bad("a weight for int8 activations", self.kind + zeros, "int8 without zeros")
        if bool((self.segment_offsets.diff() > 1).any()):
            raise bad("a segment for int8 activations", "several runs", "one run or none")
        real = torch.ones(self.packed_k) if self.gather is None else self.gather >= 0
        before = torch.cat([torch.zeros(1, dtype=torch.int64), real.long().cumsum(0)])
        longest = max(before[self.run_offsets.long()].diff().tolist(), default=0)
        if longest > MOST_K:
            raise bad("a segment for int8 activations", f"{longest} long", f"at most {MOST_K}")
        # As the kernel sees it: a scale may vanish or overflow in fp32.
        single = 1.0 if scale is None else float(torch.tensor(scale, dtype=torch.float32))
        if not 0 < single < math.inf:
            raise bad("input_scale", scale, "a positive finite fp32 number")

    def columns(self, begin: int, end: int) -> list[torch.Tensor]:
        """What is stored of some output columns, wherever in their tiles they lie: copies of their
        codes or values, and of scales and zero points."""
        tiles = range(begin // TILE, -(-end // TILE))
        return [
            torch.cat(
                [t[i, :, max(0, begin - i * TILE) : min(TILE, end - i * TILE)] for i in tiles],
                dim=1,
            )
            for t in (self.data, self.scales, self.zeros)
            if t is not None
        ]

    @property
    def tiles(self) -> int:
        return -(-self.n // TILE)

    @property
    def packed_k(self) -> int:
        return int(self.run_offsets[-1])

    @property
    def runs(self) -> int:
        return len(self.run_offsets) - 1

    @property
    def segments(self) -> int:
        return len(self.segment_offsets) - 1

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    @property
    def tensors(self) -> list[torch.Tensor]:
        tables = (self.scales, self.zeros, self.gather)
        present = [t for t in tables if t is not None]
        return [self.data, self.run_offsets, self.segment_offsets, *present]
