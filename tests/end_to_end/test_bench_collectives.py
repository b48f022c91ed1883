"""`isobit bench collectives`: the fields that tools read."""

from __future__ import annotations

from ..command import Command, command

__all__ = ["command"]


def test_every_mode_is_measured_at_every_size(command: Command):
    outcome = command("bench", "collectives", "-tp", 2, "--bytes", "64,20480", "--json")
    assert outcome.status == 0, outcome.stderr
    rows = outcome.json()["rows"]
    modes = ("custom", "gather", "library")
    assert [(r["bytes"], r["mode"]) for r in rows] == [(n, m) for n in (64, 20480) for m in modes]
    assert all(0 < row["p50_us"] <= row["p99_us"] for row in rows)


def test_sizes_that_cannot_be_float32_are_refused(command: Command):
    outcome = command("bench", "collectives", "--bytes", "64,65")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("E-USAGE --bytes '64,65': expected multiples of 4")
