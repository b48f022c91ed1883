"""Memory in huge pages behaves as any other."""

from __future__ import annotations

import itertools
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from isobit.kernels.weights.memory import HUGE_PAGE, REGION, SMALLEST, kept, streamed


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


def test_tensors_made_at_once_by_many_threads_share_nothing():
    sizes = [SMALLEST * (1 + 37 * i % 300) - i % 7 for i in range(200)] + [REGION - 1, REGION + 1]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda size: streamed((size,), torch.uint8), sizes))
    for number, tensor in enumerate(made):
        tensor.fill_(number)
    assert [int(t.min()) for t in made] == [int(t.max()) for t in made] == list(range(len(made)))


def test_tensors_smaller_than_a_huge_page_lie_side_by_side():
    size = 5 * HUGE_PAGE // 8
    made = [streamed((size,), torch.uint8) for _ in range(12)]
    starts = [tensor.data_ptr() for tensor in made]
    assert all(start % SMALLEST == 0 for start in starts)
    apart = [after - before for before, after in itertools.pairwise(starts)]
    assert sum(distance != size for distance in apart) <= 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for memory in use")
def test_memory_is_given_back():
    def in_use() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = in_use()
    made = [streamed((REGION // 2,), torch.uint8).fill_(1) for _ in range(8)]
    assert in_use() - before > 3 * REGION
    made.clear()
    assert in_use() - before <= 1.5 * REGION


def test_a_copy_is_equal_and_apart():
    original = torch.arange(6000).view(60, 100).t()
    copy = kept(original)
    assert copy.equal(original) and copy.is_contiguous()
    copy.zero_()
    assert original.any()
