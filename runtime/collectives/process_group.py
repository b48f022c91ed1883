"""Calls into torch.distributed, with its failures turned into RankFault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ...kernels.errors import RankFault

TEXT_BYTES = 1024


@contextmanager
def named_failures(describe: Callable[[], str]) -> Iterator[None]:
    """Raise RankFault E-COLL-FAILED in place of what torch raises."""
    try:
        yield
    except RuntimeError as error:
        raise RankFault(
            "E-COLL-FAILED", f"{describe()} failed: {str(error).splitlines()[0]}"
        ) from error


def exchange(text: str, rank: int, degree: int, purpose: str) -> list[str]:
    """Return every rank's text, in the order of ranks; a long text loses its end.

    Fixed-size byte tensors: the object collectives of torch pickle.
    """
    if degree == 1:
        return [text]
    encoded = text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
    own = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    found = [torch.empty_like(own) for _ in range(degree)]
    with named_failures(lambda: f"rank {rank}: {purpose}"):
        dist.all_gather(found, own)
    return [bytes(each.numpy()).rstrip(b"\0").decode(errors="ignore") for each in found]
