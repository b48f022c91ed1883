"""How much of a product an error in its weight changes."""

from __future__ import annotations

import torch

from isobit.errors import InputError

PANEL = 512


def output_energy(matrix: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(M H M^T) of M [N, K] and symmetric H [K, K]: with H = 2/n sum x x^T, 2/n sum |M x|^2.

    Half of H is enough, so this costs N K^2 multiplications. Products are float32, their
    sums too within a row of 512, then float64. The upper triangle is read.
    """
    total = torch.zeros((), dtype=torch.float64)
    for begin in range(0, matrix.shape[1], PANEL):
        part = matrix[:, begin : begin + PANEL].float()
        rows = hessian[: begin + part.shape[1], begin : begin + part.shape[1]].float()
        product = part @ rows[begin:]
        if begin:
            product.addmm_(matrix[:, :begin].float(), rows[:begin], alpha=2)
        total += product.mul_(part).sum(dim=1).sum(dtype=torch.float64)
    return float(total)


def layer_error(
    weight: torch.Tensor,
    quantized: torch.Tensor,
    hessian: torch.Tensor,
    energy: float | None = None,
) -> float:
    """tr((W-Q) H (W-Q)^T) / tr(W H W^T): the share of the output's energy that is error.

    `weight` and `quantized` [N, K], `hessian` [K, K]; `energy` is tr(W H W^T) where it is known. 0
    when the layer puts out nothing.
    """
    check_hessian(hessian, weight.shape[1])
    if energy is None:
        energy = output_energy(weight, hessian)
    error = output_energy(weight.float() - quantized.float(), hessian)
    return max(error, 0.0) / energy if energy > 0 else 0.0


def squares(matrix: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each row [A, B] -> float64 [A], float32 within the row."""
    return matrix.float().square().sum(dim=1).double()


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal power / noise power); infinite without noise."""
    if not noise:
        return float("inf")
    return float(10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))


def check_hessian(hessian: torch.Tensor, k: int) -> None:
    """Raise InputError E-QUANT-HESSIAN for a shape other than [k, k], or NaN or infinity inside."""
    if tuple(hessian.shape) != (k, k):
        raise InputError(
            "E-QUANT-HESSIAN",
            f"the Hessian is {list(hessian.shape)}, the weight has {k} input features. "
            "It belongs to another module: calibrate again",
        )
    # One sum is ten times as fast as looking at every element, which only a bad sum is worth.
    if not bool(hessian.sum().isfinite()) and (bad := int((~hessian.isfinite()).sum())):
        raise InputError(
            "E-QUANT-HESSIAN",
            f"{bad} of {hessian.numel()} elements of the Hessian are NaN or infinite: an "
            "activation overflowed while calibrating. Calibrate in the dtype that the model was "
            "trained in",
        )
