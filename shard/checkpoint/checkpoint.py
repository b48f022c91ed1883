"""A checkpoint folder: which file holds which tensor, and whether that fits the config."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from isobit.errors import DamagedError, InputError, NotSupportedError

from .safetensors_file import Header, TensorEntry, scan_header
from .safetensors_header import is_file, listed
from .settings import read_json

log = logging.getLogger("isobit.shard")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MOST_NAMED = 12
REFUSED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.gguf", "*.npz")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of a model folder by name."""

    folder: Path
    entries: dict[str, TensorEntry]

    def require(self, names: list[str]) -> None:
        """Raise InputError E-CKPT-TENSOR naming every absent tensor."""
        if missing := [name for name in names if name not in self.entries]:
            raise DamagedError(
                "E-CKPT-TENSOR",
                f"{self.folder}: {len(missing)} tensors that config.json implies are missing:"
                + listed(missing),
            )

    def first_shape(self, *names: str) -> tuple[int, ...] | None:
        """Shape of the first of `names` that the checkpoint has."""
        return next((self.entries[n].shape for n in names if n in self.entries), None)


def has_weights(folder: Path) -> bool:
    """Whether the folder holds anything that claims to be weights (readable or not)."""
    return any(any(folder.glob(p)) for p in ("*.safetensors", INDEX, *REFUSED))


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A folder as far as it can be read. `errors` holds what is wrong, first what a loader raises.

    `beyond` names tensors whose data their file lacks; `unread` those that the index names and no
    header has. `warnings` say where the index is wrong and the files are not.
    """

    checkpoint: Checkpoint
    files: list[Path]
    beyond: set[str]
    unread: set[str]
    errors: list[InputError]
    warnings: list[str]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of every safetensors file of a model folder.

    Raises NotSupportedError E-CKPT-FORMAT (only pickles or other formats), InputError
    E-CKPT-MISSING (no weights), DamagedError E-CKPT-MISSING (files named in the index are absent)
    and E-CKPT-INDEX (index and headers disagree), and what read_header raises.
    """
    scan = scan_checkpoint(folder)
    if scan.errors:
        raise scan.errors[0]
    for warning in scan.warnings:
        log.warning("%s", warning)
    return scan.checkpoint


def scan_checkpoint(folder: Path) -> Scan:
    """Read all headers, and return what can be read together with the errors.

    An index whose files are absent, beside a model.safetensors, is that of another version of the
    model: the single file counts, as for transformers. The same holds where it has every tensor
    that the index names. A tensor that is not in the file that the index names, and in another of
    its files, is read from there.

    Raises what open_checkpoint does when there is no safetensors file at all.
    """
    index, errors, warnings, weight_map = folder / INDEX, [], [], None
    try:
        weight_map = read_weight_map(folder)
    except InputError as error:
        errors.append(error)
    names = weight_files(folder, weight_map)
    absent = [name for name in names if not is_file(folder / name)]
    headers: dict[str, Header] = {}
    if weight_map is not None and is_file(folder / SINGLE):
        single = headers[SINGLE] = scan_header(folder / SINGLE)
        held = {entry.name for entry in single.entries}
        if absent or (SINGLE not in names and held >= weight_map.keys()):
            lacking = sorted(weight_map.keys() - held)
            warnings.append(
                f"{index}: not used, since {SINGLE} beside it "
                + (f"exists and {', '.join(absent[:4])} does not" if absent else "has every tensor")
                + (f". Only the index names {', '.join(lacking[:4])}" if lacking else "")
                + ". Delete the index"
            )
            weight_map, names, absent = None, [SINGLE], []
    if weight_map is not None and absent:
        errors.append(
            DamagedError(
                "E-CKPT-MISSING",
                f"{folder}: {len(absent)} of {len(names)} files named in {INDEX} are absent: "
                + ", ".join(absent[:MOST_NAMED])
                + (f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""),
            )
        )
        names = [name for name in names if name not in absent]
    elif not names and not errors:
        _refuse_other_formats(folder)
    entries: dict[str, TensorEntry] = {}
    found_in: dict[str, list[str]] = {}
    beyond, read = set(), set()
    for name in names:
        header = headers.get(name) or scan_header(folder / name)
        errors += header.errors
        if not header.errors:
            read.add(name)
        for entry in header.entries:
            found_in.setdefault(entry.name, []).append(name)
            if entry.name not in entries or (weight_map or {}).get(entry.name) == name:
                entries[entry.name] = entry
        beyond.update(entry.name for entry in header.beyond)
    unread = set(weight_map or ()) - set(entries)
    if weight_map is not None:
        if lost := sorted(n for n in unread if weight_map[n] in read):
            errors.append(
                DamagedError(
                    "E-CKPT-INDEX",
                    f"{index}: {len(lost)} tensors are not in the file that the index names:"
                    + listed([f"{name} (in {weight_map[name]})" for name in lost]),
                )
            )
        moved = [n for n in weight_map if n in found_in and weight_map[n] not in found_in[n]]
        if moved := sorted(moved):
            warnings.append(
                f"{index}: {len(moved)} tensors are in another file than the index says:"
                + listed([f"{name} (in {found_in[name][0]})" for name in moved])
            )
    twice = sorted(n for n, files in found_in.items() if len(files) > 1)
    if odd := [n for n in twice if weight_map is None or weight_map.get(n) not in found_in[n]]:
        warnings.append(
            f"{folder}: {len(odd)} tensors are in several files, and the first is read:"
            + listed([f"{name} (in {', '.join(found_in[name][:4])})" for name in odd])
        )
    return Scan(
        checkpoint=Checkpoint(folder=folder, entries=entries),
        files=[folder / name for name in names],
        beyond=beyond & set(entries),
        unread=unread,
        errors=errors,
        warnings=warnings,
    )


def weight_files(folder: Path, weight_map: dict[str, str] | None) -> list[str]:
    """Names of the files whose tensors are read: those of the index, the single file, or all."""
    if weight_map is not None:
        return sorted(set(weight_map.values()))
    if is_file(folder / SINGLE):
        return [SINGLE]
    return sorted(path.name for path in folder.glob("*.safetensors"))


def read_weight_map(folder: Path) -> dict[str, str] | None:
    """Which file holds which tensor by a folder's index; None without one.

    Raises DamagedError E-CKPT-INDEX and as read_json.
    """
    index = folder / INDEX
    if not is_file(index):
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedError("E-CKPT-INDEX", f"{index}: weight_map is missing or empty")
    if odd := [name for name, file in weight_map.items() if not isinstance(file, str)]:
        raise DamagedError(
            "E-CKPT-INDEX",
            f"{index}: weight_map names no file for {len(odd)} tensors:"
            + listed([f"{name}: {str(weight_map[name])[:80]}" for name in odd]),
        )
    # Path drops "./" and keeps "..": transformers opens ./model.safetensors as well.
    weight_map = {name: str(Path(file)) if file else "" for name, file in weight_map.items()}
    files = sorted(set(weight_map.values()))
    if outside := [name for name in files if not name or name == ".." or Path(name).name != name]:
        raise DamagedError("E-CKPT-INDEX", f"{index}: files outside the folder:" + listed(outside))
    return weight_map


def _refuse_other_formats(folder: Path) -> None:
    found = sorted(path.name for pattern in REFUSED for path in folder.glob(pattern))
    if found:
        raise NotSupportedError(
            "E-CKPT-FORMAT",
            f"{folder}: found {', '.join(found[:5])} and no *.safetensors. Pickled weights can run "
            "code when they are opened, so isobit does not read them. Convert once with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out)",
        )
    raise InputError("E-CKPT-MISSING", f"{folder}: no *.safetensors file in this folder")
