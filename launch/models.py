"""MODEL on the command line: a folder, or a Hugging Face id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from isobit.errors import EnvironmentFault, InputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def model_folder(name: str, weights: bool = True) -> Path:
    """Return the folder of a model, downloading a Hugging Face id once.

    With `weights` False only the small files are fetched. Raises InputError E-MODEL-MISSING when
    there is no such folder and no such id can be fetched.
    """
    try:
        path = Path(name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        raise InputError("E-MODEL-MISSING", f"{name}: not a folder ({error})") from error
    if exists or not _HUB_ID.fullmatch(name) or Path(name).parent.exists():
        if not path.is_dir():
            raise InputError(
                "E-MODEL-MISSING",
                f"{name}: no such folder. Give a folder that holds config.json and *.safetensors, "
                "or a Hugging Face id such as Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4",
            )
        return path
    from huggingface_hub import snapshot_download

    unwanted = None if weights else ["*.safetensors", "*.index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=unwanted))
    except _hub_errors() as error:
        raise InputError(
            "E-MODEL-MISSING",
            f"{name}: no such folder, and the Hugging Face hub did not give it "
            f"({_first_line(error)})",
        ) from error


def download_files(name: str, commit: str, files: Sequence[str]) -> Path:
    """Fetch `files` of one commit of a Hugging Face id into this host's cache; return the folder.

    Raises EnvironmentFault E-MODEL-HUB when neither the hub nor the cache gives them.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=list(files)))
    except _hub_errors() as error:
        raise EnvironmentFault(
            "E-MODEL-HUB",
            f"{name} at commit {commit[:12]}: the Hugging Face hub did not give it "
            f"({_first_line(error)})",
        ) from error
    if absent := [file for file in files if not (folder / file).is_file()]:
        # Without a connection the library is content with any part that the cache holds.
        raise EnvironmentFault(
            "E-MODEL-HUB",
            f"{name} at commit {commit[:12]}: {len(absent)} files are not in the cache, and the "
            f"hub did not give them: {', '.join(absent)}",
        )
    return folder


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the library raises when a download fails."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases include those of the HTTP client, which has changed from version to version.
    return (*HfHubHTTPError.__bases__, OSError, ValueError)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
