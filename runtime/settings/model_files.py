"""What a host does that lacks the model's files at the driver's path: `--model-files`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from isobit.errors import InputError

ModelFiles = Literal["auto", "same-path", "head", "hub"]
"""same-path: it is an error. head: the driver sends them. hub: the host downloads the driver's
commit. auto: hub for a model given by its Hugging Face id, else same-path."""
MODES: tuple[ModelFiles, ...] = get_args(ModelFiles)


def check_mode(mode: str, model: Path) -> None:
    """Raise InputError E-MODEL-FILES for an unknown mode, or `hub` with a folder of no hub."""
    if mode not in MODES:
        raise InputError("E-MODEL-FILES", f"--model-files {mode!r}: expected {', '.join(MODES)}")
    if mode == "hub" and hub_commit(model) is None:
        raise InputError(
            "E-MODEL-FILES",
            f"--model-files hub: {model} is a folder that no hub is known for. Give a Hugging Face "
            "id, or --model-files head",
        )


def hub_commit(model: Path) -> tuple[str, str] | None:
    """Id and commit of a folder in the hub's cache, models--ORG--NAME/snapshots/COMMIT.

    The layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """
    path = model.absolute()
    if path.parent.name != "snapshots" or not path.parents[1].name.startswith("models--"):
        return None
    return path.parents[1].name.removeprefix("models--").replace("--", "/"), path.name
