"""Whether all numbers of a tensor are finite, at the speed of memory."""

from __future__ import annotations

import torch

from ..checks import NUMBERS
from ..native import native


def all_finite(values: torch.Tensor) -> bool:
    """Whether no element of a float32, float16 or bfloat16 tensor is a NaN or an infinity."""
    whole = values if values.is_contiguous() else values.T if values.dim() == 2 else values
    whole = whole.contiguous()
    return native().all_finite(whole.data_ptr(), NUMBERS[whole.dtype], whole.numel())
