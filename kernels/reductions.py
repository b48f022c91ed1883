"""Ops that leave little of much: the place of the greatest, and a digest of bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .backend import cuda, native
from .checks import Checks


def greatest(x: torch.Tensor) -> list[int]:
    """Where each row of fp32 `[M, N]` is greatest, the first place among equals; -1 for a row with
    a NaN or an infinity."""
    checks = Checks("greatest", x.device)
    checks.tensor("x", x, (None, None), torch.float32)
    checks.that(x.shape[-1] > 0, "rows are empty")
    checks.done()
    if x.is_cuda:
        return cuda().greatest(x)
    return native().greatest(x.data_ptr(), x.shape[0], x.shape[1])


def digests(tensors: Sequence[torch.Tensor], rows: torch.Tensor) -> list[int]:
    """The digest of each tensor, then of each row of a matrix; all contiguous, on one device."""
    if rows.is_cuda:
        return [digest(tensor) for tensor in (*tensors, *rows)]
    addresses, sizes = [t.data_ptr() for t in tensors], [t.nbytes for t in tensors]
    row_bytes = rows.shape[1] * rows.element_size()
    return native().digests(addresses, sizes, rows.data_ptr(), len(rows), row_bytes)


def digest(tensor: torch.Tensor, seed: int = 0) -> int:
    """64 bits over the bytes of a tensor in row-major order: any one changed word changes them.

    Against accidents, not against malice. A CPU and a GPU give different digests of the same bits.
    """
    plain = tensor if tensor.is_contiguous() else tensor.contiguous()
    if plain.is_cuda:
        return cuda().digest(plain, seed)
    return native().digest(plain.data_ptr(), plain.nbytes, seed)
