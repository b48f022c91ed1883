"""Kernels that leave the range of their integers fail here, where a GPU would go on in silence."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from .conftest import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a GPU does not look at integers")


@triton.jit
def _offset(out, row, width):
    tl.store(out, row * width)


@pytest.mark.parametrize(("row", "width"), [(1 << 16, 1 << 15), (46341, 46341)])
def test_an_offset_that_no_32_bits_hold_is_an_error(row: int, width: int) -> None:
    out = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(Exception, match="overflow"):
        _offset[(1,)](out, row, width)


def test_the_largest_offset_that_32_bits_hold_is_none() -> None:
    out = torch.zeros(1, dtype=torch.int64)
    _offset[(1,)](out, 46340, 46340)
    assert out.item() == 46340**2
