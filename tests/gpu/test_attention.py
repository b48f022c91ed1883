"""Attention over pages: values against float64, and bits that only a row's own keys decide."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from isobit.errors import InputError, NotSupportedError
from isobit.kernels import ops, reference
from isobit.kernels.gpu.architecture import ARCHITECTURES, Architecture
from isobit.kernels.gpu.attention import (
    MOST_HEAD,
    Heads,
    attention_work,
    most_columns,
    plan_chunks,
    shared_bytes,
)
from isobit.kernels.gpu.launch import run_all

PAGE = ops.PAGE


@dataclass(kw_only=True)
class Setting:
    """Sequences in a cache whose unwritten slots hold NaN; row m is one token of one sequence."""

    q: torch.Tensor
    cache: ops.KVCache
    block_tables: torch.Tensor
    row_sequence: torch.Tensor
    positions: torch.Tensor
    head_to_kv: torch.Tensor
    window: int = 0

    def pick(self, rows: slice | list[int]) -> dict:
        return {
            "block_tables": self.block_tables,
            "row_sequence": self.row_sequence[rows].contiguous(),
            "positions": self.positions[rows].contiguous(),
            "scale": self.q.shape[2] ** -0.5,
            "window": self.window,
        }

    def run(
        self,
        rows: slice | list[int],
        device: str,
        columns: int = 32,
        split: bool | None = None,
        room: int | None = None,
    ) -> torch.Tensor:
        q, tables = self.q[rows].contiguous(), self.pick(rows)
        heads = Heads.of(
            self.head_to_kv.tolist(), self.cache.kv_heads, device, self.cache.head_size
        )
        if room is not None:
            heads = replace(heads, room=room)
        chunks = plan_chunks(
            tables["row_sequence"], tables["positions"], heads, device, columns=columns
        )
        there = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in tables.items()}
        cache = ops.KVCache(self.cache.keys.to(device), self.cache.values.to(device))
        out = torch.full((len(q), q[0].numel()), torch.nan, dtype=q.dtype, device=device)
        run_all(
            attention_work(
                q.flatten(1).to(device), cache, out, heads=heads, chunks=chunks, split=split,
                **there,
            ).launches
        )  # fmt: skip
        return out.cpu()


def setting(
    lengths: list[int], dtype: torch.dtype, *, head: int = 16, window: int = 0, rows: int = 0,
    head_to_kv: tuple[int, ...] = (0, 0, 0, 1, 1),
) -> Setting:  # fmt: skip
    """The last `rows` tokens of every sequence ask, or all of them."""
    kv_heads = max(head_to_kv) + 1
    pages = [-(-length // PAGE) for length in lengths]
    cache = ops.KVCache.allocate(sum(pages) + 1, kv_heads, head, dtype)
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)
    free = torch.randperm(cache.pages).tolist()
    tables = torch.full((len(lengths), max(pages)), -1, dtype=torch.int32)
    for sequence, length in enumerate(lengths):
        for page in range(pages[sequence]):
            tables[sequence, page] = free.pop()
        index = torch.arange(length)
        where = tables[sequence].long()[index // PAGE]
        cache.keys[where, :, :, index % PAGE] = torch.randn(length, kv_heads, head).to(dtype)
        cache.values[where, :, index % PAGE] = torch.randn(length, kv_heads, head).to(dtype)
    asking = [list(range(length))[-rows:] for length in lengths]
    count = sum(map(len, asking))
    return Setting(
        q=torch.randn(count, len(head_to_kv), head).to(dtype),
        cache=cache,
        block_tables=tables,
        row_sequence=torch.tensor([i for i, a in enumerate(asking) for _ in a], dtype=torch.int32),
        positions=torch.tensor([p for a in asking for p in a], dtype=torch.int32),
        head_to_kv=torch.tensor(head_to_kv, dtype=torch.int32),
        window=window,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("head", "head_to_kv"), [(16, (0, 0, 0, 1, 1)), (20, (1, 1)), (64, (0, 1, 2))]
)
@pytest.mark.parametrize("window", [0, 1, 70])
def test_values(
    window: int, head: int, head_to_kv: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    case = setting([1, 64, 150], dtype, head=head, head_to_kv=head_to_kv, window=window, rows=3)
    tables = case.pick(slice(None))
    exact = reference.attention(case.q, case.cache, head_to_kv=case.head_to_kv, **tables)
    found = case.run(slice(None), device).double()
    # Weights are rounded to the dtype before they meet the values, whose sum weighs at most the
    # largest of them, about 4; then one more rounding.
    step = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert ((found - exact).abs() <= step * (exact.abs() + 4)).all()


@pytest.mark.parametrize("window", [0, 600])
def test_bits_of_a_row(window: int, device: str) -> None:
    """Alone, among rows of its own and other sequences, in chunks of any size, split or not."""
    case = setting([1100, 40], torch.bfloat16, window=window, rows=6)
    wanted = case.run(slice(None), device, split=False)
    for columns in (16, 64):
        assert torch.equal(case.run(slice(None), device, columns=columns, split=False), wanted)
    assert torch.equal(case.run(slice(None), device, split=True), wanted)
    for row in (0, 5, 6):
        for split in (False, True):
            assert torch.equal(case.run([row], device, split=split)[0], wanted[row])


@pytest.mark.parametrize("split", [False, True])
def test_heads_that_one_program_has_no_room_for_have_the_same_bits(
    split: bool, device: str
) -> None:
    """20 query heads read one KV head, 3 another: in a block of 32 columns, and in two of 16."""
    case = setting([70], torch.bfloat16, rows=2, head_to_kv=(0,) * 20 + (1,) * 3)
    wanted = case.run(slice(None), device, split=split)
    assert torch.equal(case.run(slice(None), device, split=split, room=16), wanted)


def test_room_for_columns_shrinks_as_heads_grow() -> None:
    heads = (64, 80, 128, 192, 256, 512)
    assert [most_columns(head) for head in heads] == [64, 64, 64, 32, 32, 16]


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda one: one.name)
def test_no_head_needs_more_shared_memory_than_a_card_has(architecture: Architecture) -> None:
    """`test_room` holds the formula against what the compiler takes."""
    pages = 2 if architecture.capability == 90 else 1
    for head in range(2, MOST_HEAD + 1, 2):
        needed = shared_bytes(head, most_columns(head), pages)
        assert needed <= architecture.shared_bytes, head


def test_heads_that_are_too_large_are_refused_with_numbers() -> None:
    with pytest.raises(NotSupportedError, match=r"heads of 320 features.* up to 256.* 101376"):
        Heads.of([0], 1, "cpu", 320)


def test_long_sequences_of_single_rows_are_split(device: str) -> None:
    case = setting([1100], torch.float16, rows=1)
    heads = Heads.of(case.head_to_kv.tolist(), 2, device, 16)
    chunks = plan_chunks(case.row_sequence, case.positions, heads, device)
    assert (chunks.stretches, chunks.columns, chunks.rows.tolist()) == (3, 16, [[0, 1]])
    q = case.q.flatten(1).to(device)
    work = attention_work(
        q, case.cache, torch.empty_like(q), heads=heads, chunks=chunks, **case.pick(slice(None))
    )
    assert [launch.grid for launch in work.launches] == [(1, 2, 3), (1, 5)]


def test_a_nan_among_the_keys_shows(device: str) -> None:
    case = setting([70], torch.bfloat16, rows=2)
    page = int(case.block_tables[0, 0])
    case.cache.values[page, 1, 3] = torch.nan
    out = case.run(slice(None), device).view(2, 5, 16)
    assert out[:, 3:].isnan().all() and not out[:, :3].isnan().any()


def test_chunks_end_where_sequences_do() -> None:
    heads = Heads.of([0] * 5 + [1] * 3, 2, "cpu", 16)
    sequence = torch.tensor([0] * 9 + [1] * 2 + [0], dtype=torch.int32)
    chunks = plan_chunks(sequence, torch.arange(12, dtype=torch.int32), heads, "cpu")
    assert chunks.rows.tolist() == [[0, 6], [6, 9], [9, 11], [11, 12]]


def test_heads_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match=r"E-KERNEL-SHAPE head_to_kv is \[1, 0\]"):
        Heads.of([1, 0], 2, "cpu", 16)
