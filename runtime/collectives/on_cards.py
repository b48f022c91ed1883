"""Which collectives ranks on CUDA cards can use."""

from __future__ import annotations

from ...kernels.errors import InputError
from .interface import Mode


def mode_on_cards(mode: Mode) -> Mode:
    """Gathering in place of "auto"; raises InputError E-COLL-CUSTOM for "custom", which adds up
    in the memory of a host."""
    if mode == "custom":
        raise InputError(
            "E-COLL-CUSTOM",
            "--all-reduce custom adds up in the memory of a host, the ranks are on CUDA cards. "
            "Take gather",
        )
    return "gather" if mode == "auto" else mode
