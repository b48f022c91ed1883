"""Ops that leave little of much: the place of the greatest, and a digest of bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backend import cuda
from ..checks import Checks
from ..native import native


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


class Outcome:
    """Reads what there is to say of a step from tensors that one step after another is written to.

    `rows` fp32 `[M, N]`; everything contiguous and on one device.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], rows: torch.Tensor) -> None:
        self.tensors, self.rows = tuple(tensors), rows
        checks = Checks("outcome", rows.device)
        checks.tensor("rows", rows, (None, None), torch.float32)
        checks.that(rows.shape[-1] > 0, "rows are empty")
        for number, tensor in enumerate(tensors):
            checks.tensor(f"tensor {number}", tensor, (None,) * tensor.dim())
        checks.done()
        self.native = None
        if not rows.is_cuda:
            self.native = native().Outcome(
                [tensor.data_ptr() for tensor in tensors],
                [tensor.nbytes for tensor in tensors],
                rows.data_ptr(),
                *rows.shape,
            )

    def read(self, digests: bool, keep_rows: bool = False) -> tuple[list[int], list[int]]:
        """As `greatest` for the rows, and `digest` of every tensor and then of every row.

        `keep_rows`: `host_rows` is going to be asked for, and comes with the same wait.
        """
        if self.native is None:
            found = [digest(tensor) for tensor in (*self.tensors, *self.rows)] if digests else []
            return greatest(self.rows) if len(self.rows) else [], found
        return self.native.read(digests)

    @property
    def host_rows(self) -> torch.Tensor:
        """The rows in memory of the host."""
        return self.rows.cpu()


def digest(tensor: torch.Tensor, seed: int = 0) -> int:
    """64 bits over the bytes of a tensor in row-major order: any one changed word changes them.

    Against accidents, not against malice. A CPU and a GPU give different digests of the same bits.
    """
    plain = tensor if tensor.is_contiguous() else tensor.contiguous()
    if plain.is_cuda:
        return cuda().digest(plain, seed)
    return native().digest(plain.data_ptr(), plain.nbytes, seed)
