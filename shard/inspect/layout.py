"""Files as files: holes and overlaps between tensors, files that nothing names, SHA-256."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

from ..checkpoint import Scan
from ..safetensors_file import TensorEntry
from .findings import Finding, listed, plural

HASH_BYTES = 4 << 20


def layout_findings(folder: Path, scan: Scan) -> list[Finding]:
    """Odd layouts, which isobit can read and the safetensors package refuses; files not used."""
    by_file: dict[Path, list[TensorEntry]] = {}
    for entry in scan.checkpoint.entries.values():
        by_file.setdefault(entry.file, []).append(entry)
    findings = []
    if lines := [line for path, entries in by_file.items() for line in _overlaps(path, entries)]:
        findings.append(
            Finding(
                severity="error",
                code="E-CKPT-OVERLAP",
                where=folder.name,
                what=f"tensors share bytes of a file, so one of them is not what it says"
                f"{listed(lines)}",
                numbers={"overlaps": lines},
                way_out="the file was not written by a safetensors library: take the original",
            )
        )
    used = {path.name for path in scan.files}
    if unused := sorted(p.name for p in folder.glob("*.safetensors") if p.name not in used):
        findings.append(
            Finding(
                severity="note",
                code="N-FILE-UNUSED",
                where=", ".join(unused[:4]) + (" …" if len(unused) > 4 else ""),
                what=f"{plural(len(unused), 'safetensors file')} that the model does not use: it "
                "has an index that does not name them, or a model.safetensors",
                numbers={"files": unused},
                way_out="nothing to do, or delete them to save space",
            )
        )
    return findings


def _overlaps(path: Path, entries: list[TensorEntry]) -> list[str]:
    filled = sorted((e for e in entries if e.nbytes), key=lambda entry: entry.begin)
    return [
        f"{path.name}: {first.name} and {second.name} from byte {second.begin}"
        for first, second in itertools.pairwise(filled)
        if second.begin < first.begin + first.nbytes
    ]


def sha256_of(path: Path, advance: Callable[[int], None]) -> str | None:
    """SHA-256 of a file, read piece by piece; None for one that cannot be read (known already)."""
    digest, buffer = hashlib.sha256(), bytearray(HASH_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                advance(count)
    except OSError:
        return None
    return digest.hexdigest()
