"""Hashes of a model's files: a quick one over headers and samples, and one over every byte."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ...shard.checkpoint.safetensors_header import MOST_HEADER_BYTES

log = logging.getLogger("isobit.runtime")

SAMPLES = 16
SAMPLE_BYTES = 64 << 10
CHUNK_BYTES = 4 << 20
# A file changed twice within one tick of the clock keeps its time of change: no hash of a file
# as young as that is kept.
SETTLED_S = 2.0


def quick_hash(path: Path) -> str:
    """SHA-256 of size, header and 16 evenly spaced pieces of 64 KiB of a safetensors file.

    Two fine-tunings of one model share sizes and headers; their samples differ. Raises OSError.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        start = file.read(8)
        header = min(int.from_bytes(start, "little"), MOST_HEADER_BYTES, size)
        digest.update(start + file.read(header))
        last = max(0, size - SAMPLE_BYTES)
        for sample in range(SAMPLES):
            file.seek(last * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def whole_hash(
    path: Path, cache: Path | None = None, on_bytes: Callable[[int], None] = lambda count: None
) -> str:
    """SHA-256 of every byte of a file, from `cache` when the file is unchanged since.

    Unchanged means the same real path, inode, size and time of change. `on_bytes` hears how many
    bytes were done. Raises OSError when the file cannot be read.
    """
    status = path.stat()
    known = None
    if cache is not None:
        real = os.fsencode(path.resolve())
        key = b"%s\0%d\0%d\0%d" % (real, status.st_ino, status.st_size, status.st_mtime_ns)
        known = cache / "hashes" / hashlib.sha256(key).hexdigest()
        if known.is_file() and len(digest := known.read_text(encoding="ascii")) == 64:
            on_bytes(status.st_size)
            return digest
    running = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            running.update(chunk)
            on_bytes(len(chunk))
    digest = running.hexdigest()
    if known is not None and time.time() - status.st_mtime > SETTLED_S:
        try:
            _keep(known, digest)
        except OSError as error:
            log.warning("%s: hashes are not kept for the next time (%s)", cache, error)
    return digest


def _keep(known: Path, digest: str) -> None:
    known.parent.mkdir(parents=True, exist_ok=True)
    partial = known.with_name(f".{known.name}.{os.getpid()}")
    partial.write_text(digest, encoding="ascii")
    partial.replace(known)
