"""Attention over the paged cache: which rows a program takes, and what runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from isobit.errors import InputError, NotSupportedError

from ..step.kv_cache import PAGE, KVCache
from .jit.attention import STRETCH, attend, combine_stretches
from .launch import Launch, ceil_div, power_of_2
from .linear import Work

STRETCH_KEYS = STRETCH * PAGE
LEAST_COLUMNS = 16
MANY_COLUMNS = 32
STAGES = 2
MOST_ELEMENTS = 8192
"""Of a block of queries, features times columns: with more the shared memory of an RTX 3090 is too
small for it and the pages beside it."""
MOST_COLUMNS = 64
"""With more, an H100's registers are too few for the loop over pages."""
MOST_HEAD = 256
"""Features: with more, a page of keys and one of values fill the shared memory alone."""
FEW_WARPS_HEAD = 128
"""Larger heads do not fit in the registers of 4 warps."""


def most_columns(head: int) -> int:
    """How many columns a program has room for; which it takes changes no bit."""
    fitting = MOST_ELEMENTS // max(LEAST_COLUMNS, power_of_2(head))
    return min(MOST_COLUMNS, max(LEAST_COLUMNS, fitting))


def shared_bytes(head: int, columns: int, pages: int = 1) -> int:
    """What `attend` takes of shared memory: `pages` pages of keys and as many of values, two where
    the matrix unit reads shared memory itself (sm_90), the queries, the weights of a page."""
    wide = max(LEAST_COLUMNS, power_of_2(head))
    return 2 * (2 * pages * PAGE * wide + wide * columns + PAGE * columns)


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The query heads of every KV head: `begins` int32 `[Hkv + 1]` on the device.

    `most` query heads read one KV head; `room` is how many columns a program has at most. Where
    that is less, several programs share a KV head.
    """

    begins: torch.Tensor
    query: int
    most: int
    room: int

    @property
    def columns(self) -> tuple[int, int]:
        """The columns of a program: those of a row alone, and at most those of many rows."""
        least = min(self.room, max(LEAST_COLUMNS, power_of_2(self.most)))
        return least, max(least, min(self.room, MANY_COLUMNS))

    @classmethod
    def of(
        cls, head_to_kv: list[int], kv_heads: int, device: torch.device | str, head: int = 128
    ) -> Heads:
        """Of heads of size `head`. Raises InputError E-KERNEL-SHAPE unless KV heads ascend with the
        query heads, NotSupportedError E-KERNEL-SHAPE for heads that are too large."""
        if head > MOST_HEAD:
            raise NotSupportedError(
                "E-KERNEL-SHAPE",
                f"heads of {head} features: attention on CUDA takes up to {MOST_HEAD}. A block of "
                f"{LEAST_COLUMNS} queries would need {shared_bytes(head, LEAST_COLUMNS)} bytes of "
                "shared memory, an RTX 3090 has 101376. Run the model with --device cpu",
            )
        if head_to_kv != sorted(head_to_kv) or any(not 0 <= h < kv_heads for h in head_to_kv):
            raise InputError(
                "E-KERNEL-SHAPE",
                f"head_to_kv is {head_to_kv}; it must ascend, from 0 to {kv_heads - 1}",
            )
        counts = [head_to_kv.count(kv) for kv in range(kv_heads)]
        begins = [sum(counts[:kv]) for kv in range(kv_heads + 1)]
        return cls(
            begins=torch.tensor(begins, dtype=torch.int32, device=device),
            query=len(head_to_kv),
            most=max(counts, default=0),
            room=most_columns(head),
        )


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Rows that walk their keys together: `rows` int32 `[C, 2]` on the device, begin and end."""

    rows: torch.Tensor
    columns: int
    """Room for rows * query heads of one KV head."""
    stretches: int
    """How many stretches of 512 keys the longest row reaches over."""


def cut_chunks(
    sequences: list[int], heads: Heads, columns: int | None = None
) -> tuple[list[tuple[int, int]], int]:
    """Chunks of neighbouring rows of one sequence, begin and end, and the columns they need."""
    ends = [
        i + 1 for i in range(len(sequences)) if sequences[i : i + 1] != sequences[i + 1 : i + 2]
    ]
    longest = max((e - b for b, e in zip([0, *ends], ends, strict=False)), default=0)
    least, many = heads.columns
    many = many if columns is None else min(heads.room, max(least, columns))
    columns = least if longest * heads.most <= least else many
    together = max(1, columns // max(1, heads.most))
    rows = [
        (row, min(row + together, end))
        for begin, end in zip([0, *ends], ends, strict=False)
        for row in range(begin, end, together)
    ]
    return rows, columns


def plan_chunks(
    row_sequence: torch.Tensor,
    positions: torch.Tensor,
    heads: Heads,
    device: torch.device | str,
    *,
    columns: int | None = None,
) -> Chunks:
    """Chunks of neighbouring rows of one sequence, from tables `[M]` on the CPU."""
    rows, columns = cut_chunks(row_sequence.tolist(), heads, columns)
    most = int(positions.max()) + 1 if len(positions) else 0
    return Chunks(
        rows=torch.tensor(rows, dtype=torch.int32, device=device).view(-1, 2),
        columns=columns,
        stretches=-(-most // STRETCH_KEYS),
    )


def attention_work(
    q: torch.Tensor,
    cache: KVCache,
    out: torch.Tensor,
    *,
    block_tables: torch.Tensor,
    row_sequence: torch.Tensor,
    positions: torch.Tensor,
    heads: Heads,
    chunks: Chunks,
    scale: float,
    window: int = 0,
    split: bool | None = None,
    work: Work | None = None,
) -> Work:
    """As ops.attention: q and out `[M, Hq * D]` in the dtype of the cache.

    With `split` every stretch of 512 keys has programs of its own; left out, it is so where chunks
    are single rows and reach over several stretches. It changes no bit. `work` says where memory
    between kernels comes from.
    """
    rows, head = q.shape[0], cache.head_size
    parts = max(1, ceil_div(heads.most, chunks.columns))
    work = Work() if work is None else work
    if split is None:
        split = chunks.stretches > 1 and len(chunks.rows) == rows
    tops = weights = partial = None
    if split:
        shape = (rows, heads.query, chunks.stretches)
        tops = work.empty(*shape, dtype=torch.float32, like=q)
        weights = work.empty(*shape, dtype=torch.float32, like=q)
        partial = work.empty(*shape, head, dtype=torch.float32, like=q)
    arguments = {
        "q": q,
        "keys": cache.keys,
        "values": cache.values,
        "tables": block_tables,
        "row_sequence": row_sequence,
        "positions": positions,
        "chunks": chunks.rows,
        "head_begins": heads.begins,
        "out": out,
        "tops": tops,
        "weights": weights,
        "partial": partial,
        "q_heads": heads.query,
        "kv_heads": cache.kv_heads,
        "D": head,
        "pages": block_tables.shape[1],
        "stretches": chunks.stretches,
        "scale": scale * math.log2(math.e),
        "window": window,
        "PARTS": parts,
        "BM": chunks.columns,
        "BD": max(16, power_of_2(head)),
        "STAGES": STAGES,
    }
    grid = (len(chunks.rows), cache.kv_heads * parts, chunks.stretches if split else 1)
    work.launches.append(
        Launch(
            kernel=attend,
            grid=grid,
            arguments=arguments,
            warps=4 if chunks.columns <= LEAST_COLUMNS and head <= FEW_WARPS_HEAD else 8,
            stages=STAGES,
        )
    )
    if split:
        names = ("tops", "weights", "partial", "positions", "out", "q_heads", "D", "stretches")
        some = {name: arguments[name] for name in (*names, "window", "BD")}
        work.launches.append(
            Launch(kernel=combine_stretches, grid=(rows, heads.query), arguments=some)
        )
    return work
