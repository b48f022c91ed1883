"""The greedy choice against numpy's, and rows that are no numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops


@pytest.mark.parametrize("width", [1, 15, 16, 33, 2000])
@pytest.mark.usefixtures("isa")
def test_the_first_of_the_greatest(width: int) -> None:
    # Few different values, so that many are equal; all negative, so that no filling can win.
    x = -torch.randint(1, 9, (40, width)).float()
    assert ops.greatest(x) == np.argmax(x.numpy(), axis=1).tolist()
    noise = torch.randn(40, width)
    assert ops.greatest(noise) == np.argmax(noise.numpy(), axis=1).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.usefixtures("isa")
def test_a_row_that_is_not_finite_has_no_choice(value: float) -> None:
    x = torch.randn(3, 37)
    x[1, 36] = value
    found = ops.greatest(x)
    assert found[1] == -1 and found[0] >= 0 and found[2] >= 0


def test_empty_rows_are_refused() -> None:
    with pytest.raises(InputError, match="E-KERNEL-SHAPE"):
        ops.greatest(torch.empty(2, 0))
