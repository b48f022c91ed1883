"""MODEL on the command line: a folder, or a Hugging Face id."""

from __future__ import annotations

import re
from pathlib import Path

from ..kernels.errors import InputError

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
    from huggingface_hub.errors import HfHubHTTPError

    unwanted = None if weights else ["*.safetensors", "*.index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=unwanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            "E-MODEL-MISSING",
            f"{name}: no such folder, and the Hugging Face hub did not give it "
            f"({str(error).splitlines()[0][:200]})",
        ) from error
