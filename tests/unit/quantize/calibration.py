"""Weights and inputs for the tests of quantization algorithms, and errors in float64."""

from __future__ import annotations

import torch


def inputs(tokens: int, k: int, seed: int = 0) -> torch.Tensor:
    """Inputs float32 [tokens, k] as layers see them: correlated, some features much larger."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 8, generator=generator) @ torch.randn(8, k, generator=generator)
    own = torch.randn(tokens, k, generator=generator)
    return (shared / 2 + own) / (torch.rand(k, generator=generator) + 0.05)


def hessian(rows: torch.Tensor) -> torch.Tensor:
    """2/n sum x x^T, computed in float64, float32 [K, K]."""
    wide = rows.double()
    return (2 / len(rows) * wide.T @ wide).float()


def weight(n: int, k: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.05 * torch.randn(n, k, generator=generator)).to(dtype)


def output_error(wanted: torch.Tensor, got: torch.Tensor, h: torch.Tensor) -> float:
    """tr(E H E^T) / tr(W H W^T) in float64."""
    wide, error = wanted.double(), wanted.double() - got.double()
    energy = (wide @ h.double() * wide).sum()
    return float((error @ h.double() * error).sum() / energy)
