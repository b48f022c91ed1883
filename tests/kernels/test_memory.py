"""Memory in huge pages behaves as any other."""

from __future__ import annotations

import pytest
import torch
from isobit.kernels.memory import HUGE_PAGE, streamed


@pytest.mark.parametrize("shape", [(0, 3), (5,), (HUGE_PAGE // 4 - 1,), (3, 1 << 19, 2)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bfloat16])
def test_every_element_can_be_written_and_lives_as_long_as_the_tensor(shape, dtype):
    made = streamed(shape, dtype)
    assert made.shape == shape and made.dtype == dtype and made.is_contiguous()
    assert made.data_ptr() % 64 == 0 or made.numel() == 0
    made.fill_(7)
    part = made.flatten()[-1:]
    del made
    assert part.eq(7).all()


def test_large_tensors_begin_on_a_huge_page():
    assert streamed((HUGE_PAGE,), torch.uint8).data_ptr() % HUGE_PAGE == 0
