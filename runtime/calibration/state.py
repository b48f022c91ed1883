"""What a calibration keeps on disk, so that a run that was killed goes on where it was.

A hidden folder beside OUT holds the finished layers and the residual stream in front of the next
one. Files are written under a name of the run and renamed when they are whole; the residual stream
in front of a layer is what says that all layers before it are finished.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...kernels.errors import InputError
from ...shard.checkpoint import Checkpoint
from ...shard.quantize.layer import INPUTS
from ...shard.quantize.report import ModuleReport
from ...shard.safetensors_file import read_header
from ...shard.write_file import write_errors

FINGERPRINT = "fingerprint.json"
REST = "rest"
PARTS = (REST, *INPUTS)
_KEPT = re.compile(r"(residual-\d+|layer-\d+\.\w+)\.(safetensors|json)")


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
    differences are named), E-OUT-BUSY while another process uses it, E-OUT-WRITE when the system
    refuses. `restart` discards what is there.
    """

    def __init__(self, out: Path, fingerprint: Mapping[str, Any], restart: bool = False) -> None:
        self.out, self.folder = out, state_folder(out)
        self.run = secrets.token_hex(4)
        with write_errors(out):
            self._lock()
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
        """Remove the folder; the state is closed then."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let others use the folder. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> None:
        """Hold the folder until closed; the system lets go of it when a process is killed."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise InputError(
                "E-OUT-BUSY", f"{self.out}: another process is making it (it holds {self.folder})"
            ) from error

    def _open(self, fingerprint: Mapping[str, Any]) -> None:
        file = self.path(FINGERPRINT)
        wanted = json.loads(json.dumps(fingerprint))
        if file.exists():
            self._check(json.loads(file.read_text()), wanted)
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
        """Remove what is not whole or has done its work; with `keep` None everything."""
        for path in self.folder.iterdir():
            if keep is not None:
                residual = path.name.startswith("residual-")
                whole = path.name == FINGERPRINT or _KEPT.fullmatch(path.name)
                if path.name in keep or (whole and not residual):
                    continue
            if path.is_dir():
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
