"""The files of hosts against the driver's: every difference at once, by host and file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isobit.errors import InputError

from .manifest import Manifest, ModelFile


@dataclass(frozen=True, kw_only=True)
class HostFiles:
    """What one host has. `error` says why a folder cannot be read; its manifest is then empty."""

    host: str
    folder: str
    manifest: Manifest
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One file of one host. `what` is missing, differs, extra, or unreadable (the whole folder)."""

    host: str
    what: str
    name: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.host}: {self.detail}"


def differences(wanted: Manifest, hosts: Iterable[HostFiles]) -> list[Difference]:
    """What hosts lack, have otherwise, or have in addition, in the order of hosts and names.

    Whole hashes are compared where both sides have them, else quick ones.
    """
    return [difference for host in hosts for difference in _of_host(wanted, host)]


def refusal(
    wanted: Manifest, folder: str, found: Sequence[Difference], remedy: str
) -> InputError | None:
    """One error for all differences in what ranks read; None when there is none.

    E-MODEL-DIFFERS when some file is another one or too many, E-MODEL-MISSING when files are only
    missing.
    """
    fatal = [each for each in found if each.kind != "tokenizer"]
    if not fatal:
        return None
    missing = all(each.what in ("missing", "unreadable") for each in fatal)
    hosts = count(len({each.host for each in fatal}), "host")
    return InputError(
        "E-MODEL-MISSING" if missing else "E-MODEL-DIFFERS",
        f"{folder}: {hosts} without the {count(len(wanted.files), 'file')} ({wanted.size} bytes) "
        "that the driver has:\n" + "".join(f"  {each}\n" for each in fatal) + remedy,
    )


def count(number: int, thing: str) -> str:
    """1 host, 2 hosts."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _of_host(wanted: Manifest, host: HostFiles) -> list[Difference]:
    if host.error:
        return [
            Difference(host=host.host, what="unreadable", name="", kind="config", detail=host.error)
        ]
    here = {file.name: file for file in wanted.files}
    there = {file.name: file for file in host.manifest.files}
    found = []
    for name in sorted(here | there):
        ours, theirs = here.get(name), there.get(name)
        if ours is None:
            what, detail = "extra", f"{name} is there, and the driver has no such file"
        elif theirs is None:
            what, detail = "missing", f"{name} is missing ({ours.size} bytes)"
        elif detail := _how_they_differ(ours, theirs):
            what = "differs"
        else:
            continue
        kind = (here if ours else there)[name].kind
        found.append(Difference(host=host.host, what=what, name=name, kind=kind, detail=detail))
    return found


def _how_they_differ(ours: ModelFile, theirs: ModelFile) -> str:
    """Empty when they do not."""
    if ours.size != theirs.size:
        return f"{ours.name} has {theirs.size} bytes, the driver's has {ours.size}"
    both = bool(ours.whole and theirs.whole)
    one, other = (ours.whole, theirs.whole) if both else (ours.quick, theirs.quick)
    if one == other:
        return ""
    whole = both or ours.kind != "weights"
    name = "SHA-256" if whole else "SHA-256 of header and samples"
    return f"{ours.name} differs: {name} {other[:12]}, the driver's {one[:12]}"
