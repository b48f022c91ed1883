"""The driver's part: every host that holds ranks gets the same files, or all that lack are named.

Each rank looks at the driver's path first. Only where that lacks or differs does the mode matter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isobit.errors import EnvironmentFault, InputError

from ..progress import progress
from ..ranks.group import RankGroup
from ..settings.model_files import ModelFiles, hub_commit
from ..transport.driver import Serve
from .cache import cache_folder
from .compare import Difference, HostFiles, count, differences, refusal
from .fetch import PIECE_BYTES, read_piece
from .manifest import Manifest, read_manifest
from .questions import FETCH, FETCH_FROM_HUB, LOOK, QUESTIONS

log = logging.getLogger("isobit.runtime")

COMPARE_TIMEOUT_S = 120.0
"""Reading headers and samples takes seconds; importing torch from a cold disk takes longer."""
PIECE_TIMEOUT_S = 600.0
"""How long all ranks may want no piece: they hash what is there, or wait for another run."""
HUB_TIMEOUT_S = 24 * 3600.0
"""A download says nothing until it ends; the hub's library gives up by itself when it stalls."""

_HEAD = "--model-files head sends the driver's files to each host instead"


def settle_files(
    group: RankGroup,
    model: Path,
    mode: ModelFiles,
    *,
    weights: bool = True,
    timeout_s: float = COMPARE_TIMEOUT_S,
) -> None:
    """Have each rank read the driver's files or a copy of them. Without other hosts: nothing.

    Without `weights` only configs matter. A rank has `timeout_s` to look at its files. Raises
    InputError E-MODEL-MISSING or E-MODEL-DIFFERS naming hosts and files, EnvironmentFault when a
    copy cannot be made, and RankFault as RankGroup.collect.
    """
    if not group.several_hosts:
        return
    wanted, folder = read_manifest(model, weights=weights), str(model.absolute())
    look = {"folder": folder, "weights": weights}
    seen = _seen(_ask(group, LOOK, look, timeout_s))
    found = _found(wanted, seen)
    for each in found:
        if each.kind == "tokenizer":
            log.warning("%s. Ranks do not read it", each)
    hub = hub_commit(model)
    if mode == "auto":
        mode = "same-path" if hub is None else "hub"
    error = refusal(wanted, folder, found, _copy(folder))
    if error is None:
        return
    if mode == "same-path":
        raise error
    lacking = {each.host for each in found if each.kind != "tokenizer"}
    fetch = {**look, "ranks": [rank for rank, host in seen.items() if host.host in lacking]}
    if mode == "head":
        _send(group, model, weights, fetch)
        return
    assert hub is not None, "check_mode refuses a folder of no hub"
    hub_id, commit = hub
    fetch |= {"id": hub_id, "commit": commit, "manifest": wanted.to_dict()}
    with progress(f"hosts download {hub_id}"):
        answers = _ask(group, FETCH_FROM_HUB, fetch, HUB_TIMEOUT_S)
    _accept(wanted, folder, answers, _HEAD)


def _send(group: RankGroup, model: Path, weights: bool, fetch: dict[str, Any]) -> None:
    """Serve pieces of the driver's files until every rank in fetch["ranks"] has its copy."""
    with progress(f"hashing {model.name}") as on_bytes:
        wanted = read_manifest(
            model, weights=weights, whole=True, cache=cache_folder(), on_bytes=on_bytes
        )
    with progress(f"sending {model.name} to other hosts") as on_bytes:
        sent: dict[int, int] = {}

        def serve(rank: int, message: Mapping[str, Any]) -> dict[str, Any]:
            file, offset = wanted.files[message["file"]], message["offset"]
            try:
                data = read_piece(model / file.name, offset, PIECE_BYTES)
            except OSError as error:
                raise InputError(
                    "E-MODEL-MISSING", f"{model / file.name}: cannot be read ({error.strerror})"
                ) from error
            sent[rank] = sent.get(rank, 0) + len(data)
            on_bytes(sum(sent.values()), len(sent) * wanted.size)
            return {"kind": "piece", "file": message["file"], "offset": offset, "data": data}

        fetch = {**fetch, "manifest": wanted.to_dict()}
        answers = _ask(group, FETCH, fetch, PIECE_TIMEOUT_S, serve)
    _accept(wanted, str(model), answers, "Run the command again")


def _ask(
    group: RankGroup,
    kind: str,
    message: Mapping[str, Any],
    timeout_s: float,
    serve: Serve | None = None,
) -> dict[int, dict[str, Any]]:
    group.tell({"kind": kind, **message})
    return group.collect("files", QUESTIONS[kind], timeout_s, stop_at_error=False, serve=serve)


def _accept(
    wanted: Manifest, folder: str, answers: Mapping[int, dict[str, Any]], remedy: str
) -> None:
    """Raise for hosts that still have not the driver's files."""
    seen = _seen(answers)
    if failed := {seen[rank].host: answers[rank] for rank in seen if seen[rank].error}:
        raise EnvironmentFault(
            next(iter(failed.values()))["code"],
            f"{folder}: {count(len(failed), 'host')} could not get the driver's files:\n"
            + "".join(f"  {host}: {each['error']}\n" for host, each in failed.items())
            + remedy,
        )
    if error := refusal(wanted, folder, _found(wanted, seen), remedy):
        raise error


def _found(wanted: Manifest, seen: Mapping[int, HostFiles]) -> list[Difference]:
    """The differences of each host once, however many ranks it holds."""
    return differences(wanted, {each.host: each for each in seen.values()}.values())


def _seen(answers: Mapping[int, Mapping[str, Any]]) -> dict[int, HostFiles]:
    """What each rank said of its host; ranks of one host that say the same share a name."""
    said: dict[tuple[str, str, str], list[int]] = {}
    for rank, each in sorted(answers.items()):
        key = (each["host"], each["error"], str(each["files"]))
        said.setdefault(key, []).append(rank)
    names = {rank: _name(key[0], ranks) for key, ranks in said.items() for rank in ranks}
    return {
        rank: HostFiles(
            host=names[rank],
            folder=each["folder"],
            manifest=Manifest.from_dict(each),
            error=each["error"],
        )
        for rank, each in sorted(answers.items())
    }


def _copy(folder: str) -> str:
    return (
        f"Copy the folder to the same path on each host (rsync -a {folder}/ HOST:{folder}/), or "
        "give --model-files head: the driver then sends its files to each host once"
    )


def _name(host: str, ranks: list[int]) -> str:
    return f"{host} (rank{'s' if ranks[1:] else ''} {', '.join(map(str, ranks))})"
