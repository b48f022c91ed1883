"""Digests of tensors: equal bits give equal digests, on any rank, at any degree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ..kernels import ops

DIGEST_BYTES = 8


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return 16 hexadecimal digits over the bytes of a tensor, in row-major order."""
    return f"{ops.digest(tensor):016x}"


def step_digests(found: Sequence[int], alike: int) -> tuple[str, list[str]]:
    """One digest for the first `alike`, of what all ranks compute alike, and the others as text."""
    texts = [f"{one:016x}" for one in found]
    return chain_digests(texts[:alike]), texts[alike:]


def chain_digests(digests: list[str]) -> str:
    """Return the digest of a sequence of digests."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=DIGEST_BYTES).hexdigest()
