"""A checkpoint folder: which file holds which tensor, and whether that fits the config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..kernels.errors import InputError
from .safetensors_file import TensorEntry, read_header
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
            raise InputError(
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


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of every safetensors file of a model folder.

    Raises InputError E-CKPT-FORMAT (only pickles or other formats), E-CKPT-MISSING (no weights, or
    files named in the index are absent), E-CKPT-INDEX (index and headers disagree), and what
    read_header raises.
    """
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError("E-CKPT-INDEX", f"{index}: weight_map is missing or empty")
        files = sorted({str(name) for name in weight_map.values()})
        if outside := [name for name in files if Path(name).name != name]:
            raise InputError(
                "E-CKPT-INDEX", f"{index}: files outside the folder: {', '.join(outside)}"
            )
        if absent := [name for name in files if not (folder / name).is_file()]:
            raise InputError(
                "E-CKPT-MISSING",
                f"{folder}: {len(absent)} of {len(files)} files named in {INDEX} are absent: "
                + ", ".join(absent),
            )
    elif (folder / SINGLE).is_file():
        weight_map, files = None, [SINGLE]
    else:
        weight_map, files = None, sorted(path.name for path in folder.glob("*.safetensors"))
        if not files:
            _refuse_other_formats(folder)
    entries: dict[str, TensorEntry] = {}
    for name in files:
        for entry in read_header(folder / name):
            if weight_map is None or weight_map.get(entry.name) == name:
                entries[entry.name] = entry
    if weight_map is not None and (lost := sorted(set(weight_map) - set(entries))):
        raise InputError(
            "E-CKPT-INDEX",
            f"{index}: {len(lost)} tensors are not in the file that the index names:\n  "
            + "\n  ".join(f"{name} (in {weight_map[name]})" for name in lost[:20]),
        )
    return Checkpoint(folder=folder, entries=entries)


def _refuse_other_formats(folder: Path) -> None:
    found = sorted(path.name for pattern in REFUSED for path in folder.glob(pattern))
    if found:
        raise InputError(
            "E-CKPT-FORMAT",
            f"{folder}: found {', '.join(found[:5])} and no *.safetensors. Pickled weights can run "
            "code when they are opened, so isobit does not read them. Convert once with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out)",
        )
    raise InputError("E-CKPT-MISSING", f"{folder}: no *.safetensors file in this folder")
