"""Collectives in processes that do nothing else, so that a hang is a finding and not a hang."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isobit.findings import Evidence, Finding

CHECK = "collectives"
MODES = ("gather", "library", "custom")
"""The custom ones last: should they hang, the others have been seen to work."""
START_S = 30.0
"""What starting Python and torch may take on a busy machine, on top of the collectives."""


def canary(degree: int, timeout_s: float) -> tuple[dict[str, Any], list[Finding]]:
    """Sum whole numbers with every mode; return the times by mode, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_start(Path(folder), rank, degree, timeout_s) for rank in range(degree)]
        try:
            deadline = time.monotonic() + START_S + timeout_s
            for process in ranks:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.0, deadline - time.monotonic()))
            hung = [rank for rank, process in enumerate(ranks) if process.poll() is None]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        said = [_lines(Path(folder) / f"rank-{rank}") for rank in range(degree)]
    statuses = [process.returncode for process in ranks]
    return _times(said), _findings(said, hung, statuses)


def _start(folder: Path, rank: int, degree: int, timeout_s: float) -> subprocess.Popen[bytes]:
    numbers = [str(rank), str(degree), str(timeout_s)]
    with (folder / f"rank-{rank}").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.canary_rank", str(folder), *numbers],
            stdout=out,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )


def _lines(path: Path) -> list[dict[str, Any]]:
    """What a rank wrote, one object a line; a last line may be cut off."""
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _times(said: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    return {
        line["mode"]: {"median_us": line["median_us"], "slowest_us": line["slowest_us"]}
        for line in said[0]
        if "median_us" in line
    }


def _findings(
    said: Sequence[Sequence[Mapping[str, Any]]], hung: Sequence[int], statuses: Sequence[int]
) -> list[Finding]:
    found = [
        _fault(
            f"{line['mode']} collectives, rank {rank}: {line['error']}",
            line["mode"],
            rank,
            line["error"],
        )
        for rank, lines in enumerate(said)
        for line in lines
        if line.get("error")
    ]
    done = [{line["mode"] for line in lines if "median_us" in line} for lines in said]
    for rank in range(len(said)):
        missing = [mode for mode in MODES if mode not in done[rank]]
        if not missing or any(line.get("error") for line in said[rank]):
            continue
        how = "hangs" if rank in hung else f"ended with status {statuses[rank]}"
        found.append(
            _fault(f"rank {rank} {how} in {missing[0]} collectives", missing[0], rank, how)
        )
    return found


def _fault(what: str, mode: str, rank: int, measured: str) -> Finding:
    return Finding(
        check=CHECK,
        severity="error" if mode != "library" else "warning",
        verdict="collective-fault" if mode != "library" else "healthy",
        what=what,
        op=f"{mode} all_reduce",
        rank=rank,
        evidence=(
            Evidence(
                what=f"whole numbers summed by {mode} collectives in processes of their own",
                measured=measured,
                threshold="the one right answer, in time",
                source="whole numbers below 2^24 add up exactly in fp32",
            ),
        ),
        confidence="high",
        reason="no model is involved",
        remedy="isobit generate MODEL -tp N --disable-custom-all-reduce -p TEXT"
        if mode == "custom"
        else "look at the network of this host (GLOO_SOCKET_IFNAME), then at other users of it",
    )
