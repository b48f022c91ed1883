"""What a model folder holds: name, size and hash of each file that isobit reads."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ...shard.checkpoint.checkpoint import INDEX, read_weight_map, weight_files
from .hashes import quick_hash, whole_hash

CONFIGS = ("config.json", "generation_config.json", "quantize_config.json")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
)
KINDS = ("config", "weights", "tokenizer")
MOST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One file. `kind` is one of KINDS: ranks read config and weights, the driver tokenizers too.

    `quick` is hashes.quick_hash of weights, and SHA-256 of every byte of the other files; `whole`
    is SHA-256 of every byte, or empty in a quick manifest.
    """

    name: str
    kind: str
    size: int
    quick: str
    whole: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of one folder, by name."""

    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def content_hash(self) -> str:
        """SHA-256 hex over names and contents; every file needs its `whole` hash."""
        assert all(file.whole for file in self.files)
        lines = (f"{file.whole} {file.size} {file.name}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for messages and JSON."""
        return {"files": [dataclasses.asdict(file) for file in self.files]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Manifest:
        """Inverse of to_dict. Raises InputError E-WIRE for anything that is not a manifest."""
        try:
            files = tuple(ModelFile(**each) for each in fields["files"])
        except (TypeError, KeyError) as error:
            raise InputError("E-WIRE", f"not a manifest of files: {error}") from error
        for file in files:
            texts = (file.name, file.kind, file.quick, file.whole)
            plain = all(isinstance(text, str) for text in texts) and type(file.size) is int
            if not plain or file.size < 0 or file.kind not in KINDS or not _is_name(file.name):
                raise InputError("E-WIRE", f"not a file of a manifest: {str(file)[:200]}")
        if len({file.name for file in files}) != len(files):
            raise InputError("E-WIRE", "not a manifest of files: a name comes twice")
        return cls(files=files)


def read_manifest(
    folder: Path,
    *,
    weights: bool = True,
    whole: bool = False,
    cache: Path | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """The manifest of a folder; files are hashed side by side.

    Without `weights` configs and tokenizer files alone. `whole` reads every byte, or takes what
    `cache` knows of unchanged files, and tells `on_bytes` how many bytes of how many are done.
    Weights are those that a rank would read: other *.safetensors beside an index are left out.
    Raises InputError E-MODEL-MISSING for a folder or a file that cannot be read.
    """
    try:
        if not folder.is_dir():
            raise InputError("E-MODEL-MISSING", f"{folder}: no such folder")
        kinds = _kinds(folder, weights)
        sizes = {name: (folder / name).stat().st_size for name in kinds}
        count = _Counter(sum(sizes.values()), on_bytes)

        def read(name: str) -> ModelFile:
            path, kind = folder / name, kinds[name]
            every = whole_hash(path, cache, count.add) if whole or kind != "weights" else ""
            return ModelFile(
                name=name,
                kind=kind,
                size=sizes[name],
                quick=quick_hash(path) if kind == "weights" else every,
                whole=every if whole else "",
            )

        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
            return Manifest(files=tuple(pool.map(read, sorted(kinds))))
    except OSError as error:
        where = error.filename or folder
        raise InputError(
            "E-MODEL-MISSING", f"{where}: cannot be read ({error.strerror or error})"
        ) from error


def _kinds(folder: Path, weights: bool) -> dict[str, str]:
    """The files to list, and of which kind each is."""
    kinds = {path.name: "tokenizer" for pattern in TOKENIZERS for path in folder.glob(pattern)}
    kinds |= dict.fromkeys(CONFIGS, "config")
    if weights:
        try:
            weight_map = read_weight_map(folder)
        except InputError:
            # The index is listed as it is: where it differs from the driver's it is named.
            weight_map = None
        kinds[INDEX] = "config"
        kinds |= dict.fromkeys(weight_files(folder, weight_map), "weights")
    return {name: kind for name, kind in kinds.items() if (folder / name).is_file()}


def _is_name(name: str) -> bool:
    """Whether a name that came over a wire stays in its folder."""
    return bool(name) and Path(name).name == name and name[0] != "." and "\0" not in name


class _Counter:
    """Adds up the bytes of several threads."""

    def __init__(self, total: int, on_bytes: Callable[[int, int], None]) -> None:
        self._total, self._on_bytes, self._done = total, on_bytes, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._on_bytes(self._done, self._total)
