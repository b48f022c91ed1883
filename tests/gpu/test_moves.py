"""Rows moved about by the card, against torch's indexing; values are copied, never changed."""

from __future__ import annotations

import pytest
import torch

from isobit.kernels.gpu import moves


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_part_of_a_table(dtype: torch.dtype, device: str) -> None:
    """Tokens of other parts leave rows as they were; the table may be wider than the rows."""
    table, before = torch.randn(5, 1100).to(dtype), torch.randn(4, 1030).to(dtype)
    tokens = torch.tensor([12, 9, 16, 15])
    out = before.clone().to(device)
    moves.pick_rows(table.to(device), tokens.to(device), out, first=10, count=5).run()
    wanted = before.clone()
    wanted[0] = table[2, :1030]
    assert torch.equal(out.cpu(), wanted)
    moves.pick_rows(table.to(device), tokens.to(device), out, first=12, count=4).run()
    wanted[0], wanted[3] = table[0, :1030], table[3, :1030]
    assert torch.equal(out.cpu(), wanted)


def test_the_owner_of_a_token_counts(device: str) -> None:
    gathered = torch.randn(3, 4, 1030).bfloat16()
    tokens, ends = torch.tensor([0, 7, 4, 3]), torch.tensor([4, 6, 9])
    out = torch.full((4, 1030), torch.nan, device=device)
    moves.owned_rows(gathered.to(device), tokens.to(device), ends.to(device), out).run()
    wanted = torch.stack([gathered[rank, row] for row, rank in enumerate([0, 2, 1, 0])])
    assert torch.equal(out.cpu(), wanted.float())


def test_uneven_columns_side_by_side(device: str) -> None:
    """The last rank's columns reach beyond the output: what is beyond is padding."""
    gathered = torch.randn(3, 2, 1100)
    begins = torch.tensor([0, 1100, 1164, 1228])
    out = torch.full((2, 1200), torch.nan, device=device)
    moves.join_columns(gathered.to(device), begins.to(device), out).run()
    wanted = torch.cat([gathered[0], gathered[1, :, :64], gathered[2, :, :36]], dim=1)
    assert torch.equal(out.cpu(), wanted)
