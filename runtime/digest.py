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


def step_digests(alike: Sequence[torch.Tensor], logits: torch.Tensor) -> tuple[str, list[str]]:
    """One digest over what all ranks compute alike, and those of each row of logits [L, V]."""
    found = [f"{one:016x}" for one in ops.digests(alike, logits)]
    return chain_digests(found[: len(alike)]), found[len(alike) :]


def chain_digests(digests: list[str]) -> str:
    """Return the digest of a sequence of digests."""
    return hashlib.blake2b("".join(digests).encode(), digest_size=DIGEST_BYTES).hexdigest()
