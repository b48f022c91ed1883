"""A rank's part: say which files this host has, and fetch what it lacks, before anything loads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from isobit.errors import EnvironmentFault, InputError, IsobitError

from .cache import cache_folder, host_lock
from .fetch import PIECE_BYTES, fetch_model
from .manifest import Manifest, read_manifest
from .questions import FETCH

PIECES_AHEAD = 4

Download = Callable[[str, str, Sequence[str]], Path]
"""`download(id, commit, names)`: fetch files of a hub model, return their folder.

Raises InputError or EnvironmentFault.
"""


class Link(Protocol):
    """What is needed of a rank's link to its driver."""

    def send(self, message: dict[str, Any]) -> None: ...

    def receive(self) -> dict[str, Any]: ...


def answer(link: Link, message: dict[str, Any], rank: int, download: Download | None) -> str:
    """Answer a question about files; return the folder that this rank is to read.

    A failure is part of the answer: the driver names all hosts at once.
    """
    folder, weights = Path(message["folder"]), message["weights"]
    seen: dict[str, Any] = {"host": os.uname().nodename, "error": "", "code": "", "files": []}
    try:
        if rank in message.get("ranks", ()):
            folder = _fetch(link, message, download)
        seen |= read_manifest(folder, weights=weights).to_dict()
    except IsobitError as error:
        seen |= {"error": error.message, "code": error.code}
    link.send({"kind": "files", "folder": str(folder), **seen})
    return str(folder)


def _fetch(link: Link, message: dict[str, Any], download: Download | None) -> Path:
    wanted, cache = Manifest.from_dict(message["manifest"]), cache_folder()
    if message["kind"] == FETCH:
        return fetch_model(wanted, cache, lambda n, offset: _pieces(link, wanted, n, offset))
    if download is None:
        raise EnvironmentFault("E-MODEL-HUB", "this launcher downloads nothing from a hub")
    names = [file.name for file in wanted.files]
    name = str(message["id"]).replace("/", "--")
    try:
        with host_lock(cache / "hub" / f"{name}.lock"):
            return download(message["id"], message["commit"], names)
    except OSError as error:
        raise EnvironmentFault("E-MODEL-WRITE", f"{cache}: cannot be written ({error})") from error


def _pieces(link: Link, wanted: Manifest, number: int, offset: int) -> Iterator[bytes]:
    """Ask for the rest of a file, a few pieces ahead of what has arrived."""
    size = wanted.files[number].size
    asked: deque[int] = deque()
    while offset < size or asked:
        while offset < size and len(asked) < PIECES_AHEAD:
            link.send({"kind": "want piece", "file": number, "offset": offset})
            asked.append(offset)
            offset += PIECE_BYTES
        piece, expected = link.receive(), asked.popleft()
        if piece.get("kind") != "piece" or (piece["file"], piece["offset"]) != (number, expected):
            raise InputError(
                "E-MODEL-TRANSFER", f"{wanted.files[number].name}: the driver broke off"
            )
        yield piece["data"]
