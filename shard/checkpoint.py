"""A checkpoint folder: which file holds which tensor, and whether that fits the config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..kernels.errors import DamagedError, InputError, NotSupportedError
from .safetensors_file import TensorEntry, scan_header
from .settings import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
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
                f"{self.folder}: {len(missing)} tensors that config.json implies are missing:\n  "
                + "\n  ".join(missing[:20])
                + (f"\n  and {len(missing) - 20} more" if len(missing) > 20 else ""),
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
    header has.
    """

    checkpoint: Checkpoint
    files: list[Path]
    beyond: set[str]
    unread: set[str]
    errors: list[InputError]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of every safetensors file of a model folder.

    Raises InputError E-CKPT-FORMAT (only pickles or other formats), E-CKPT-MISSING (no weights, or
    files named in the index are absent), E-CKPT-INDEX (index and headers disagree), and what
    read_header raises.
    """
    scan = scan_checkpoint(folder)
    if scan.errors:
        raise scan.errors[0]
    return scan.checkpoint


def scan_checkpoint(folder: Path) -> Scan:
    """Read all headers, and return what can be read together with the errors.

    Raises InputError E-CKPT-FORMAT and E-CKPT-MISSING when there is no safetensors file at all.
    """
    index, errors, weight_map = folder / INDEX, [], None
    try:
        weight_map = read_weight_map(folder)
    except InputError as error:
        errors.append(error)
    names = weight_files(folder, weight_map)
    if weight_map is not None:
        if absent := [name for name in names if not (folder / name).is_file()]:
            errors.append(
                DamagedError(
                    "E-CKPT-MISSING",
                    f"{folder}: {len(absent)} of {len(names)} files named in {INDEX} are absent: "
                    + ", ".join(absent),
                )
            )
            names = [name for name in names if name not in absent]
    elif not names and not errors:
        _refuse_other_formats(folder)
    entries: dict[str, TensorEntry] = {}
    beyond, read = set(), set()
    for name in names:
        header = scan_header(folder / name)
        errors += header.errors
        if not header.errors:
            read.add(name)
        for entry in header.entries:
            if weight_map is None or weight_map.get(entry.name) == name:
                entries[entry.name] = entry
        beyond.update(entry.name for entry in header.beyond)
    unread = set(weight_map or ()) - set(entries)
    if weight_map is not None and (lost := sorted(n for n in unread if weight_map[n] in read)):
        errors.append(
            DamagedError(
                "E-CKPT-INDEX",
                f"{index}: {len(lost)} tensors are not in the file that the index names:\n  "
                + "\n  ".join(f"{name} (in {weight_map[name]})" for name in lost[:20]),
            )
        )
    return Scan(
        checkpoint=Checkpoint(folder=folder, entries=entries),
        files=[folder / name for name in names],
        beyond=beyond & set(entries),
        unread=unread,
        errors=errors,
    )


def weight_files(folder: Path, weight_map: dict[str, str] | None) -> list[str]:
    """Names of the files whose tensors are read: those of the index, the single file, or all."""
    if weight_map is not None:
        return sorted(set(weight_map.values()))
    if (folder / SINGLE).is_file():
        return [SINGLE]
    return sorted(path.name for path in folder.glob("*.safetensors"))


def read_weight_map(folder: Path) -> dict[str, str] | None:
    """Which file holds which tensor by a folder's index; None without one.

    Raises InputError E-CKPT-INDEX and as read_json.
    """
    index = folder / INDEX
    if not index.is_file():
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedError("E-CKPT-INDEX", f"{index}: weight_map is missing or empty")
    weight_map = {name: str(file) for name, file in weight_map.items()}
    files = sorted(set(weight_map.values()))
    if outside := [name for name in files if Path(name).name != name]:
        raise DamagedError(
            "E-CKPT-INDEX", f"{index}: files outside the folder: {', '.join(outside)}"
        )
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
