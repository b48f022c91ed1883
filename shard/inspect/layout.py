"""Files as files: those that nothing names, and SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from isobit.findings import Finding

from ..checkpoint.checkpoint import INDEX, Scan
from ..names import plural

HASH_BYTES = 4 << 20


def index_findings(scan: Scan) -> list[Finding]:
    """Where the index is wrong and the files are not."""
    return [
        Finding(
            severity="warning",
            code="W-CKPT-INDEX",
            where=INDEX,
            what=warning.partition(": ")[2],
            remedy="delete the index, or write it anew: the files decide",
        )
        for warning in scan.warnings
    ]


def layout_findings(folder: Path, scan: Scan) -> list[Finding]:
    """Files that nothing names."""
    findings = []
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
                remedy="nothing to do, or delete them to save space",
            )
        )
    return findings


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
