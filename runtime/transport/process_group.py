"""Calls into torch.distributed, with its failures turned into RankFault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from isobit.errors import RankFault

TEXT_BYTES = 1024


class _SetUp:
    """The gloo group over which ranks agree before the first step; None: the default one."""

    group: dist.ProcessGroup | None = None


def open_set_up_group(timeout_s: float) -> None:
    """Let ranks wait `timeout_s` for each other in `exchange`, however short a collective may wait.

    Ranks load and compile for minutes, each at its own pace. Every rank of the default process
    group makes this call.
    """
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert not isinstance(group, int), "every rank is a member"
    _SetUp.group = group


def set_up_group() -> dist.ProcessGroup | None:
    """The group of `exchange`; None stands for the default one."""
    return _SetUp.group if dist.is_initialized() else None


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

    Waits as long as `open_set_up_group` was told. Fixed-size byte tensors: the object collectives
    of torch pickle.
    """
    if degree == 1:
        return [text]
    encoded = text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
    own = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    found = [torch.empty_like(own) for _ in range(degree)]
    with named_failures(lambda: f"rank {rank}: {purpose}"):
        dist.all_gather(found, own, group=set_up_group())
    return [bytes(each.numpy()).rstrip(b"\0").decode(errors="ignore") for each in found]
