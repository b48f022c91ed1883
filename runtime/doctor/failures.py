"""Errors as findings: which verdict an error code stands for, and where it happened."""

from __future__ import annotations

import re
from collections.abc import Sequence

from isobit.errors import (
    DamagedError,
    EnvironmentFault,
    InputError,
    IsobitError,
    NotSupportedError,
    RankFault,
)
from isobit.findings import Confidence, Evidence, Finding, Verdict

_BY_CODE: tuple[tuple[str, Verdict], ...] = (
    ("E-CONFIG", "config-mismatch"),
    ("E-PLAN", "config-mismatch"),
    ("E-QUANT-LABEL", "format-mislabelled"),
    ("E-QUANT-ZEROS", "format-mislabelled"),
    ("E-CKPT-DTYPE", "format-mislabelled"),
    ("E-QUANT", "checkpoint-damaged"),
    ("E-CODES", "checkpoint-damaged"),
    ("E-SCALE", "checkpoint-damaged"),
    ("E-CKPT", "checkpoint-damaged"),
    ("E-MODEL", "checkpoint-damaged"),
    ("E-NUM-OVERFLOW", "numeric-overflow"),
    ("E-LOAD-DIFFERS", "shard-fault"),
    ("E-RANK-PRODUCT", "kernel-fault"),
    ("E-RANK-D", "rank-divergence"),
    ("E-RANK-STOPPED", "environment"),
    ("E-COLL-SHM", "environment"),
    ("E-COLL-CUDA", "environment"),
    ("E-COLL-NCCL", "environment"),
    ("E-MEM", "environment"),
    ("E-HOST-LOST", "environment"),
    ("E-NET", "environment"),
    ("E-COLL", "collective-fault"),
    ("E-RANK-TIMEOUT", "collective-fault"),
)
"""The first entry whose code begins an error's code holds."""
CRASHES = ("signal 4", "signal 6", "signal 7", "signal 8", "signal 11")
"""SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: the process ended itself."""
_SITE = re.compile(r"\b((?:layers\.\d+|embed_tokens|lm_head|norm)\.[\w.]+|logits)\b")
_LAYER = re.compile(r"layers\.([0-9]{1,9})\.")
_RANK = re.compile(r"\brank (\d+)\b")


class RanksLost(Exception):
    """Ranks that a check needs have been lost in an earlier one."""


class RanksFailed(RankFault):
    """A rank fault with the ranks that are to blame, as far as that can be told."""

    def __init__(self, fault: RankFault, silent: Sequence[int]) -> None:
        super().__init__(fault.code, fault.message)
        self.silent = tuple(silent)


def verdict_of_code(code: str, *, misused: bool = False) -> Verdict | None:
    """The verdict that an error code stands for, None for a code that says nothing of a cause.

    `misused`: the files are whole, and their settings contradict each other or are misspelled.
    """
    verdict: Verdict | None = next((v for begin, v in _BY_CODE if code.startswith(begin)), None)
    if misused and verdict == "checkpoint-damaged":
        return "config-mismatch"
    return verdict


def verdict_of_error(error: IsobitError) -> Verdict | None:
    """As verdict_of_code; but no file is damaged that an error does not call so."""
    if isinstance(error, NotSupportedError):
        return "not-supported"
    misused = isinstance(error, InputError) and not isinstance(error, DamagedError)
    return verdict_of_code(error.code, misused=misused)


def layer_of(text: str) -> int | None:
    """The first layer that a name or message mentions."""
    match = _LAYER.search(text)
    return int(match[1]) if match else None


def op_of(site: str) -> str | None:
    """layers.3.mlp.down_proj.partial -> mlp.down_proj."""
    inner = _LAYER.sub("", site.removeprefix("model."), count=1)
    return inner.removesuffix(".out").removesuffix(".in").removesuffix(".partial") or None


def finding_of_error(check: str, error: IsobitError) -> Finding:
    """What an error that ended a check says about the case."""
    site = _SITE.search(error.message)
    ranks = [int(rank) for rank in _RANK.findall(error.message)]
    silent = list(getattr(error, "silent", ()))
    verdict, level, reason = _cause(error, silent)
    named = silent or (ranks if verdict != "collective-fault" or len(set(ranks)) == 1 else [])
    evidence = [Evidence(what=error.code, measured=error.message)]
    if silent:
        evidence.append(
            Evidence(what="ranks that still run and do not answer", measured=_ranks(silent))
        )
    place = site[1] if site else None
    what = f"{error.code} {error.message.splitlines()[0]}"
    if silent:
        what = f"{_ranks(silent)} fell silent: {what}"
    return Finding(
        check=check,
        severity="error",
        verdict=verdict,
        what=what,
        site=place,
        layer=layer_of(place or error.message),
        op=op_of(place) if place else None,
        rank=named[0] if named else None,
        evidence=tuple(evidence),
        confidence=level,
        reason=reason,
        remedy=_remedy(error, verdict),
    )


def _cause(error: IsobitError, silent: Sequence[int]) -> tuple[Verdict, Confidence, str]:
    if error.code == "E-RANK-DIED":
        if any(f"by {signal}" in error.message for signal in CRASHES):
            return "kernel-fault", "medium", "the rank's own code ended it"
        return "environment", "medium", "somebody or something ended the process of a rank"
    verdict = verdict_of_error(error)
    if verdict == "collective-fault" and silent:
        return verdict, "high", "every other rank reported that it waits, this one did not"
    if verdict is not None:
        return verdict, "high" if isinstance(error, InputError) else "medium", "see the message"
    if isinstance(error, EnvironmentFault):
        return "environment", "high", "see the message"
    return "environment", "low", "an error that names no cause"


def _remedy(error: IsobitError, verdict: Verdict) -> str:
    if verdict == "collective-fault":
        return "run again with --all-reduce gather: if it works, the custom path is at fault"
    if error.code == "E-RANK-DIED":
        return "look for the reason in the kernel's log (dmesg): the OOM killer ends with signal 9"
    if error.code == "E-HOST-LOST":
        return "look at that host, then run again"
    if verdict == "numeric-overflow":
        return "run with --dtype bfloat16"
    return "do what the message says"


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in ranks)
