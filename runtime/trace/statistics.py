"""A tensor in five numbers: how large, how healthy, and where it goes bad."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch

FP16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """Of a part `[T, N]`. `absmax` and `rms` are over its finite numbers, 0 where there are none.

    `non_finite` is the share of NaN and infinities, `beyond_fp16` the share of magnitudes above
    65504, infinities included. The rows (counted within the step) are the first that have such a
    number; None: no row has.
    """

    absmax: float
    rms: float
    non_finite: float
    beyond_fp16: float
    first_non_finite_row: int | None
    first_beyond_fp16_row: int | None

    def fields(self) -> tuple[float | int | None, ...]:
        """The numbers in the order above, as messages and files have them."""
        return astuple(self)


def statistics_from(fields: list | tuple) -> TensorStatistics:
    """Inverse of TensorStatistics.fields. Raises TypeError, ValueError for another count."""
    absmax, rms, non_finite, beyond, first_non_finite, first_beyond = fields
    return TensorStatistics(
        absmax=float(absmax),
        rms=float(rms),
        non_finite=float(non_finite),
        beyond_fp16=float(beyond),
        first_non_finite_row=first_non_finite,
        first_beyond_fp16_row=first_beyond,
    )


def tensor_statistics(tensor: torch.Tensor) -> TensorStatistics:
    """The statistics of a tensor `[T, N]` fp32, fp16 or bf16; sums are float64."""
    # In bfloat16 the limit itself would be rounded, to 65536.
    magnitudes = tensor.float().abs()
    finite = magnitudes.isfinite()
    beyond = magnitudes > FP16_MAX
    known = magnitudes[finite]
    count = max(1, tensor.numel())
    return TensorStatistics(
        absmax=float(known.max()) if len(known) else 0.0,
        rms=float(known.double().square().mean().sqrt()) if len(known) else 0.0,
        non_finite=(tensor.numel() - len(known)) / count,
        beyond_fp16=int(beyond.sum()) / count,
        first_non_finite_row=_first_row(~finite),
        first_beyond_fp16_row=_first_row(beyond),
    )


def _first_row(marked: torch.Tensor) -> int | None:
    rows = marked.any(dim=1).nonzero()
    return int(rows[0]) if len(rows) else None
