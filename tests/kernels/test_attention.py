"""Attention over pages: values against float64, and bits that only a row's own keys decide."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops, reference

PAGE = ops.PAGE


@dataclass
class Setting:
    """Sequences in a cache whose unwritten slots hold NaN; row m is one token of one sequence."""

    q: torch.Tensor
    cache: ops.KVCache
    block_tables: torch.Tensor
    row_sequence: torch.Tensor
    positions: torch.Tensor
    head_to_kv: torch.Tensor
    window: int = 0

    @property
    def tables(self) -> dict:
        return {
            "block_tables": self.block_tables,
            "row_sequence": self.row_sequence,
            "positions": self.positions,
            "head_to_kv": self.head_to_kv,
            "scale": self.q.shape[2] ** -0.5,
            "window": self.window,
        }

    def run(self, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        tables = self.tables
        tables["row_sequence"] = self.row_sequence[rows].contiguous()
        tables["positions"] = self.positions[rows].contiguous()
        return ops.attention(self.q[rows].contiguous(), self.cache, **tables)


def setting(
    lengths: list[int],
    dtype: torch.dtype,
    *,
    q_heads: int = 5,
    kv_heads: int = 2,
    head: int = 32,
    window: int = 0,
) -> Setting:
    pages = [-(-length // PAGE) for length in lengths]
    cache = ops.KVCache.allocate(sum(pages) + 1, kv_heads, head, dtype)
    free = torch.randperm(cache.pages).tolist()
    tables = torch.full((len(lengths), max(pages)), -1, dtype=torch.int32)
    for sequence, length in enumerate(lengths):
        for page in range(pages[sequence]):
            tables[sequence, page] = free.pop()
        index = torch.arange(length)
        where = tables[sequence].long()[index // PAGE]
        cache.keys[where, :, :, index % PAGE] = torch.randn(length, kv_heads, head).to(dtype)
        cache.values[where, :, index % PAGE] = torch.randn(length, kv_heads, head).to(dtype)
    return Setting(
        q=torch.randn(sum(lengths), q_heads, head).to(dtype),
        cache=cache,
        block_tables=tables,
        row_sequence=torch.cat(
            [torch.full((length,), i, dtype=torch.int32) for i, length in enumerate(lengths)]
        ),
        positions=torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
        head_to_kv=(torch.arange(q_heads) * kv_heads // q_heads).to(torch.int32),
        window=window,
    )


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head"), [(5, 2, 32), (1, 1, 128), (4, 4, 80), (20, 1, 8), (3, 2, 17)]
)
@pytest.mark.parametrize("window", [0, 1, 70])
@pytest.mark.usefixtures("isa")
def test_values(dtype: torch.dtype, q_heads: int, kv_heads: int, head: int, window: int) -> None:
    case = setting(
        [1, 64, 65, 150], dtype, q_heads=q_heads, kv_heads=kv_heads, head=head, window=window
    )
    rows = torch.cat([torch.randperm(len(case.q))[:24], torch.tensor([0, 64, 129, 279])]).sort()[0]
    out = case.run(rows).double()
    tables = case.tables | {
        "row_sequence": case.row_sequence[rows],
        "positions": case.positions[rows],
    }
    exact = reference.attention(case.q[rows], case.cache, **tables)
    # Scores of size 4 carry some 2^-21 through exp; then one rounding to the dtype.
    bound = 4e-6 + torch.finfo(dtype).eps / 2 * exact.abs()
    assert ((out - exact).abs() <= bound).all()


@pytest.mark.parametrize("window", [0, 66])
@pytest.mark.usefixtures("isa")
def test_prefill_decode_and_pieces_agree(dtype: torch.dtype, window: int) -> None:
    case = setting([200], dtype, window=window)
    whole = case.run()
    for row in (0, 1, 63, 64, 65, 127, 128, 199):
        assert torch.equal(case.run(slice(row, row + 1)), whole[row : row + 1])
    pieces = [case.run(slice(begin, min(begin + 33, 200))) for begin in range(0, 200, 33)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.usefixtures("isa")
def test_later_keys_do_not_show(dtype: torch.dtype) -> None:
    case = setting([130], dtype)
    whole = case.run()
    pages = case.block_tables[0].long()
    for bad in (float("nan"), float("inf"), 0.0):
        case.cache.keys[pages[1], :, :, 37:] = bad
        case.cache.values[pages[1], :, 37:] = bad
        case.cache.keys[pages[2]] = bad
        case.cache.values[pages[2]] = bad
        assert torch.equal(case.run(slice(0, 101)), whole[:101])


@pytest.mark.usefixtures("isa")
def test_neighbours_threads_and_pages_do_not_show(dtype: torch.dtype) -> None:
    case = setting([70, 3, 129], dtype)
    whole = case.run()
    assert torch.equal(case.run(slice(73, 202)), whole[73:])
    mixed = torch.randperm(202)
    assert torch.equal(case.run(mixed), whole[mixed])
    ops.set_threads(2)
    assert torch.equal(case.run(), whole)
    ops.set_threads(1)
    moved = torch.randperm(case.cache.pages)
    keys, values = case.cache.keys.clone(), case.cache.values.clone()
    keys[moved], values[moved] = case.cache.keys, case.cache.values
    case.cache = ops.KVCache(keys, values)
    case.block_tables = torch.where(
        case.block_tables < 0, -1, moved[case.block_tables.long()].to(torch.int32)
    )
    assert torch.equal(case.run(), whole)


@pytest.mark.usefixtures("isa")
def test_heads_owned_elsewhere_do_not_show(dtype: torch.dtype) -> None:
    case = setting([90], dtype, q_heads=6, kv_heads=2, head=64)
    whole = case.run().view(90, 6, 64)
    tables = case.tables | {"head_to_kv": torch.tensor([0, 1], dtype=torch.int32)}
    part = ops.attention(case.q[:, 2:4].contiguous(), case.cache, **tables)
    assert torch.equal(part.view(90, 2, 64), whole[:, 2:4])
    tables["head_to_kv"] = torch.empty(0, dtype=torch.int32)
    assert ops.attention(case.q[:, :0].contiguous(), case.cache, **tables).shape == (90, 0)


@pytest.mark.usefixtures("isa")
def test_large_scores_stay_finite(dtype: torch.dtype) -> None:
    case = setting([150], dtype)
    case.q *= 100
    out = case.run()
    exact = reference.attention(case.q, case.cache, **case.tables)
    assert out.isfinite().all()
    # Scores of size 400 carry an error of about 400 * 2^-21 into the exponent.
    assert (out.double() - exact).abs().max() < 2e-3 + 4 * torch.finfo(dtype).eps


def test_a_rank_may_own_no_head() -> None:
    cache = ops.KVCache.allocate(2, 0, 32, torch.bfloat16)
    none, table = torch.empty(3, 0), torch.ones(8, 16)
    rows = torch.arange(3, dtype=torch.int32)
    q = ops.rope_and_cache(
        none, none, none, cos=table, sin=table, positions=rows, slots=rows.long(), cache=cache
    )
    assert q.shape == (3, 0, 32)
    out = ops.attention(
        q,
        cache,
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        row_sequence=torch.zeros(3, dtype=torch.int32),
        positions=rows,
        head_to_kv=torch.empty(0, dtype=torch.int32),
        scale=1.0,
    )
    assert out.shape == (3, 0) and out.dtype == torch.bfloat16


def test_bad_tables_are_named() -> None:
    case = setting([70], torch.float32)
    with pytest.raises(InputError, match=r"INDEX attention: row 69 at position 128"):
        case.positions[69] = 128
        case.run()
    case.positions[69] = 69
    case.block_tables[0, 1] = -1
    with pytest.raises(InputError, match=r"INDEX attention: row 64 at position 64"):
        case.run()
    with pytest.raises(InputError, match=r"head_to_kv\[1\] is 2"):
        case.head_to_kv[1] = 2
        case.run()
    with pytest.raises(InputError, match=r"row_sequence\[3\] is 1"):
        case.row_sequence[3] = 1
        case.run()
    with pytest.raises(InputError, match="attention: q is float32"):
        ops.attention(case.q[:, :, :4].contiguous(), case.cache, **case.tables)
