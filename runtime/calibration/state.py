"""What a calibration keeps on disk, so that a run that was killed goes on where it was.

A hidden folder beside OUT holds the finished layers and the residual stream in front of the next
one. Files are written under a name of the run and renamed when they are whole; the residual stream
in front of a layer is what says that all layers before it are finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ...shard.checkpoint.checkpoint import Checkpoint
from ...shard.checkpoint.safetensors_file import read_header
from ...shard.checkpoint.write_file import write_errors
from ...shard.quantize.layer import INPUTS
from ...shard.quantize.report import ModuleReport

FINGERPRINT = "fingerprint.json"
MOST_FINGERPRINT_BYTES = 1 << 24
REST = "rest"
PARTS = (REST, *INPUTS)
_WHOLE = re.compile(r"(residual-\d+|layer-\d+\.[\w.]+)\.(safetensors|json)|fingerprint\.json")
_PART = re.compile(rf"({_WHOLE.pattern})\.[0-9a-f]{{8}}(\.\d+)?")


def state_folder(out: Path) -> Path:
    """Where the state of a run that makes `out` lies."""
    return out.absolute().parent / f".{out.name}.calibration"


def residual_file(layer: int) -> str:
    """The residual stream in front of a layer."""
    return f"residual-{layer:05d}.safetensors"


def layer_file(layer: int, part: str) -> str:
    """Tensors of a layer: those of a key of INPUTS, or REST."""
    return f"layer-{layer:05d}.{part}.safetensors"


def report_file(layer: int, part: str) -> str:
    """Reports on the products of a key of INPUTS."""
    return f"layer-{layer:05d}.{part}.json"


class CalibrationState:
    """The folder of one run. `next_layer` is the first that has to be calibrated.

    Raises InputError E-CALIB-STATE when the folder was left by a run with another fingerprint (all
    differences are named), or is none that a run has made: nothing in it is touched then.
    E-OUT-BUSY while another process uses it, E-OUT-WRITE when the system refuses. `restart`
    discards what a run left.
    """

    def __init__(self, out: Path, fingerprint: Mapping[str, Any], restart: bool = False) -> None:
        self.out, self.folder = out, state_folder(out)
        self.run = secrets.token_hex(4)
        with write_errors(out):
            self._lock()
            try:
                self._refuse_foreign()
            except BaseException:
                self.close()
                raise
            try:
                if restart:
                    self._remove_files(keep=None)
                self._open(fingerprint)
            except BaseException:
                if self.path(FINGERPRINT).exists():
                    self.close()
                else:
                    self.discard()
                raise

    def path(self, name: str) -> Path:
        """A file that is whole."""
        return self.folder / name

    def part(self, name: str) -> Path:
        """Where this run writes a file before it is whole."""
        return self.folder / f"{name}.{self.run}"

    def keep(self, names: Iterable[str]) -> None:
        """Rename files that are whole. Raises InputError E-OUT-WRITE."""
        with write_errors(self.out):
            for name in names:
                self.part(name).rename(self.path(name))
            _sync(self.folder)

    def advance(self, layer: int) -> None:
        """The residual stream in front of `layer` is whole: what lies before it has done its work.

        Raises InputError E-OUT-WRITE.
        """
        self.keep([residual_file(layer)])
        self.next_layer = layer
        with write_errors(self.out):
            self.path(residual_file(layer - 1)).unlink(missing_ok=True)

    def has_layer(self, layer: int) -> bool:
        """Whether all tensors of a layer are here, if not the residual stream behind it."""
        names = [layer_file(layer, part) for part in PARTS]
        return all(self.path(name).exists() for name in names)

    def keep_layer(self, layer: int) -> None:
        """Rename what the ranks wrote about a layer, tensors last. Raises InputError E-OUT-WRITE"""
        self.keep(report_file(layer, part) for part in INPUTS)
        self.keep(layer_file(layer, part) for part in PARTS)

    def layer_tensors(self, layer: int) -> Checkpoint:
        """The tensors of a finished layer."""
        return kept_layer(self.folder, layer)

    def layer_reports(self, layer: int) -> dict[str, ModuleReport]:
        """Reports of a finished layer by module name."""
        reports: dict[str, ModuleReport] = {}
        for part in INPUTS:
            stored = json.loads(self.path(report_file(layer, part)).read_text())
            reports |= {name: ModuleReport(**fields) for name, fields in stored.items()}
        return reports

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def discard(self) -> None:
        """Remove what runs have written and the folder, unless there is more in it; the state is
        closed then."""
        with contextlib.suppress(OSError):
            self._remove_files(keep=None)
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Let others use the folder. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> None:
        """Hold the folder until closed; the system lets go of it when a process is killed."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        try:
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise self._foreign("it is a link, or no folder") from error
            raise
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise InputError(
                "E-OUT-BUSY", f"{self.out}: another process is making it (it holds {self.folder})"
            ) from error

    def _refuse_foreign(self) -> None:
        """Raise InputError E-CALIB-STATE for a folder that no run of this user has made."""
        if (owner := os.fstat(self._descriptor).st_uid) != self._own_user():
            raise self._foreign(f"it belongs to user {owner}")
        paths = sorted(self.folder.iterdir())
        if self.path(FINGERPRINT) in paths:
            if self._found() is None:
                raise self._foreign(f"its {FINGERPRINT} is none")
            foreign = [path.name for path in paths if not self._ours(path)]
        else:
            # A run that is killed at once leaves no more than a fingerprint that is not whole.
            begun = re.compile(rf"{FINGERPRINT}\.[0-9a-f]{{8}}")
            foreign = [path.name for path in paths if not begun.fullmatch(path.name)]
        if foreign:
            more = f" and {len(foreign) - 8} more" if len(foreign) > 8 else ""
            raise self._foreign(f"no run has written {', '.join(foreign[:8])}{more}")

    def _foreign(self, reason: str) -> InputError:
        return InputError(
            "E-CALIB-STATE",
            f"{self.folder}: calibration keeps its state there, but {reason}. Nothing was touched: "
            "move it away, or choose another OUT",
        )

    def _own_user(self) -> int:
        """Who owns the files that this process makes in the folder: a file server may rename."""
        probe = self.part(FINGERPRINT)
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            return os.fstat(descriptor).st_uid
        finally:
            os.close(descriptor)
            probe.unlink()

    def _found(self) -> dict[str, Any] | None:
        """The fingerprint that is there; None for a file that is no fingerprint."""
        file = self.path(FINGERPRINT)
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_FINGERPRINT_BYTES:
            return None
        try:
            found = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and {"model", "samples"} <= set(found) else None

    def _ours(self, path: Path) -> bool:
        """Whether runs make such a file, or such a folder, in which OUT grows."""
        if path.is_dir() and not path.is_symlink():
            growing = rf"\.{re.escape(self.out.name)}\.[a-z0-9_]{{8}}"
            return re.fullmatch(growing, path.name) is not None
        return any(pattern.fullmatch(path.name) for pattern in (_WHOLE, _PART))

    def _open(self, fingerprint: Mapping[str, Any]) -> None:
        file = self.path(FINGERPRINT)
        wanted = json.loads(json.dumps(fingerprint))
        if (found := self._found() if file.exists() else None) is not None:
            self._check(found, wanted)
        residuals = sorted(self.folder.glob("residual-*.safetensors"))
        keep = {residuals[-1].name} if file.exists() and residuals else set()
        self.next_layer = int(next(iter(keep))[9:14]) if keep else 0
        self._remove_files(keep if keep else None)
        if not keep:
            self.part(FINGERPRINT).write_text(json.dumps(wanted, indent=2) + "\n")
            self.keep([FINGERPRINT])
        self.resumed = bool(keep)

    def _check(self, found: Any, wanted: Mapping[str, Any]) -> None:
        differing = [
            f"{name}: {_shown(found.get(name))} then, {_shown(wanted.get(name))} now"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        if differing:
            raise InputError(
                "E-CALIB-STATE",
                f"{self.folder} was left by a run that was stopped, and does not fit this one:\n  "
                + "\n  ".join(differing)
                + "\nRepeat that command to finish it, or give --restart to begin anew",
            )

    def _remove_files(self, keep: set[str] | None) -> None:
        """Remove what is not whole or has done its work; with `keep` None all that runs wrote."""
        for path in sorted(self.folder.iterdir()):
            if not self._ours(path):
                continue
            if keep is not None:
                residual = path.name.startswith("residual-")
                if path.name in keep or (_WHOLE.fullmatch(path.name) and not residual):
                    continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def kept_layer(folder: Path, layer: int) -> Checkpoint:
    """The tensors of a finished layer in the folder of a run."""
    paths = [folder / layer_file(layer, part) for part in PARTS]
    entries = {entry.name: entry for path in paths for entry in read_header(path)}
    return Checkpoint(folder=folder, entries=entries)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
