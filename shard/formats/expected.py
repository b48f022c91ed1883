"""What a format stores for one weight: the tensors that must or may be in the file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

ANY = -1
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A tensor of a module: its shape, the dtypes it may have, and whether it may be absent.

    A dimension of ANY (-1) may have any length: another tensor says which.
    """

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    required: bool = True
