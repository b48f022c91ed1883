"""The factor of a damped Hessian that GPTQ works with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from isobit.errors import InputError

PANEL = 512


@dataclass(frozen=True, kw_only=True)
class Factor:
    """`upper` float32 [K, K], upper triangular R with R R^T = H + diag(damping).

    Below its diagonal lies garbage. `damping` float32 [K], in the order of R. `damp_percent` is the
    share of the mean diagonal that was added, `retries` how often it was raised.
    """

    upper: torch.Tensor
    damping: torch.Tensor
    damp_percent: float
    retries: int


class Factors:
    """Factors of one Hessian [K, K], each computed once for all products that share inputs."""

    def __init__(self, hessian: torch.Tensor) -> None:
        self.hessian = hessian
        self._found: dict[tuple[bool, float, float], tuple[list[Factor], Iterator[Factor]]] = {}

    @cached_property
    def falling(self) -> torch.Tensor:
        """Input features in the order of falling diagonal, int64 [K]: act-order."""
        return self.hessian.diagonal().argsort(descending=True, stable=True)

    def damped(self, falling: bool, damp_percent: float, most: float) -> Iterator[Factor]:
        """Yield what `factors` does, in act-order or not."""
        key = (falling, damp_percent, most)
        if key not in self._found:
            order = self.falling if falling else None
            self._found[key] = [], factors(self.hessian, order, damp_percent, most)
        found, rest = self._found[key]
        yield from found
        for factor in rest:
            found.append(factor)
            yield factor


def factors(
    hessian: torch.Tensor, order: torch.Tensor | None, damp_percent: float, most: float
) -> Iterator[Factor]:
    """Yield factors with more and more damping, from `damp_percent` tenfold each time to `most`.

    H = R R^T and the usual H^-1 = U^T U are one factorization, U = R^-1, but R costs K^3 / 3 where
    U costs 4 K^3 / 3. `order` int64 [K] permutes H first. A feature that calibration never saw
    (diagonal 0) is given the mean diagonal. A damping that leaves H not positive definite is passed
    over. Raises InputError E-QUANT-HESSIAN when all are.
    """
    diagonal = hessian.diagonal().float()
    live = diagonal > 0
    if not bool(live.any()):
        raise InputError(
            "E-QUANT-HESSIAN",
            f"none of the {len(diagonal)} input features was ever different from zero while "
            "calibrating. Calibrate with other samples, or leave this module dense",
        )
    mean, tried = diagonal[live].mean(), []
    while damp_percent <= most * (1 + 1e-9):
        damping = torch.where(live, damp_percent * mean, mean)
        damping = damping if order is None else damping[order]
        matrix = hessian.to(torch.float32, copy=True) if order is None else _sorted(hessian, order)
        matrix.diagonal().add_(damping)
        if factor_upper_(matrix):
            yield Factor(
                upper=matrix, damping=damping, damp_percent=damp_percent, retries=len(tried)
            )
        tried.append(f"{damp_percent:g}")
        damp_percent *= 10
    raise InputError(
        "E-QUANT-HESSIAN",
        f"the Hessian is not positive definite, or leads to infinite weights, with damp_percent "
        f"{', '.join(tried)} ({len(diagonal)} input features, mean diagonal {float(mean):.3g}, "
        f"smallest {float(diagonal.min()):.3g}). Calibrate with more or other samples, or raise "
        "max_damp_percent",
    )


def factor_upper_(matrix: torch.Tensor) -> bool:
    """Overwrite the upper triangle of a symmetric matrix [K, K] with R, upper, with R R^T equal it.

    Panels from the last to the first; almost all of the work is in matrix products, which reach
    more of the machine's speed than LAPACK's potrf. Returns False when the matrix is not positive
    definite; its contents are then lost.
    """
    k = len(matrix)
    for end in range(k, 0, -PANEL):
        begin = max(0, end - PANEL)
        strip = matrix[:end, begin:end]
        if end < k:
            strip.addmm_(matrix[:end, end:], matrix[begin:end, end:].T, alpha=-1)
        # R of a block is its lower Cholesky factor seen in a mirror.
        lower, info = torch.linalg.cholesky_ex(strip[begin:].flip(0, 1))
        if int(info) or not bool(lower.isfinite().all()):
            return False
        corner = lower.flip(0, 1)
        strip[begin:] = corner
        if begin:
            strip[:begin] = torch.linalg.solve_triangular(
                corner.T, strip[:begin], upper=False, left=False
            )
    return True


def _sorted(hessian: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return hessian.index_select(0, order).index_select(1, order).float()
