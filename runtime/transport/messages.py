"""What has happened to ranks and their driver, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class DriverGone(Exception):
    """The driver has ended, or hung up."""

    def __init__(self) -> None:
        super().__init__("the driver is gone, and with it this rank")


def name_ranks(gone: Mapping[int, str], what: str) -> str:
    """What was going on, and which ranks ended how."""
    return f"{what}: " + "; ".join(f"rank {rank} {how}" for rank, how in sorted(gone.items()))


def unique_lines(messages: Iterable[str]) -> str:
    """Join texts, each line once, in order."""
    return "\n".join(dict.fromkeys(line for text in messages for line in text.splitlines()))
