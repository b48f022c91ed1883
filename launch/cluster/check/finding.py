"""One thing that is wrong with the hosts of a cluster."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Gravity = Literal["note", "warning", "fault"]


@dataclass(frozen=True, kw_only=True)
class HostFinding:
    """One thing that is wrong, the hosts it is about, and a command or action that helps.

    A fault keeps a run from starting or from being right; a warning may make it slow or is known
    to cause trouble; a note only explains.
    """

    gravity: Gravity
    what: str
    way_out: str
    hosts: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
