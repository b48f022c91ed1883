"""The files of a tokenizer, looked at before a library reads them."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from isobit.errors import (
    DamagedError,
    EnvironmentFault,
    InputError,
    NotSupportedError,
)

CODE = "E-TOKENIZER"
CONFIG = "tokenizer_config.json"
# The largest tokenizer.json that people use have 35 MB, the largest templates 100 KB.
MOST_BYTES = 64 << 20
MOST_TEMPLATE_BYTES = 1 << 20
JSON_OBJECTS = (
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "config.json",
)
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
SETTINGS = (CONFIG, "special_tokens_map.json", "added_tokens.json")
OTHERS = ("merges.txt", "tekken.json")
SENTENCEPIECE = "pip install 'isobit[sentencepiece]'"
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+")


def check_folder(folder: Path, remedy: str) -> None:
    """Refuse what no tokenizer library should be given.

    Raises InputError for a folder without a tokenizer, DamagedError for files that are no regular
    files, too large, or no JSON objects (all of them at once), NotSupportedError for tiktoken's.
    """
    wrong = []
    for name in dict.fromkeys((*JSON_OBJECTS, *VOCABULARIES, *OTHERS)):
        wrong += _wrong(folder / name, MOST_BYTES)
    templates = [folder / name for name in ("chat_template.jinja", *_more_templates(folder))]
    for template in templates:
        wrong += _wrong(template, MOST_TEMPLATE_BYTES)
    if wrong:
        raise DamagedError(CODE, "\n".join(wrong))
    wrong = [line for name in JSON_OBJECTS for line in _wrong_json(folder / name)]
    wrong += [line for template in templates for line in _wrong_text(template)]
    if wrong:
        raise DamagedError(CODE, "\n".join(wrong))
    if not any((folder / name).exists() for name in VOCABULARIES):
        others = sorted(_names(folder, ("*.tiktoken", "tekken.json", "tiktoken.model")))
        if others:
            raise NotSupportedError(
                CODE,
                f"{folder}: {', '.join(others)}: a tokenizer in tiktoken's format. isobit reads "
                f"tokenizer.json and SentencePiece models; convert it, or: {remedy}",
            )
        raise InputError(CODE, f"{folder}: no tokenizer in this folder. {remedy}")


def is_sentencepiece(folder: Path, remedy: str) -> bool:
    """Whether a folder has tokenizer.model alone, which is SentencePiece's.

    Raises EnvironmentFault when the library is missing, NotSupportedError for a file of tiktoken's.
    """
    model = folder / "tokenizer.model"
    if (folder / "tokenizer.json").exists() or not model.exists():
        return False
    with model.open("rb") as file:
        first = file.readline(4096).strip()
    if _TIKTOKEN_LINE.fullmatch(first):
        raise NotSupportedError(
            CODE,
            f"{model}: a tokenizer in tiktoken's format (it begins with {first[:40]!r}). isobit "
            f"reads tokenizer.json and SentencePiece models; convert it, or: {remedy}",
        )
    from importlib.util import find_spec

    missing = [name for name in ("sentencepiece", "google.protobuf") if not _found(find_spec, name)]
    if missing:
        raise EnvironmentFault(
            CODE,
            f"{model}: a SentencePiece model needs {' and '.join(missing)}, which "
            f"{'are' if len(missing) > 1 else 'is'} not installed: {SENTENCEPIECE}",
        )
    return True


def _found(find_spec: Any, name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _names(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    return [path.name for pattern in patterns for path in folder.glob(pattern)]


def _more_templates(folder: Path) -> list[str]:
    return [f"additional_chat_templates/{path.name}" for path in _templates(folder)]


def _templates(folder: Path) -> list[Path]:
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))


def _wrong(path: Path, most: int) -> list[str]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return [f"{path}: a link to nothing"] if path.is_symlink() else []
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    if not stat.S_ISREG(found.st_mode):
        return [f"{path}: no regular file"]
    if found.st_size > most:
        return [f"{path}: {found.st_size} bytes; {most} are the most that are read"]
    return []


def _wrong_text(path: Path) -> list[str]:
    try:
        path.read_bytes().decode()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        return [f"{path}: no text in UTF-8 ({error})"]
    return []


def _wrong_json(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        return [f"{path}: nested too deeply"]
    except ValueError as error:  # of JSON or of UTF-8
        return [f"{path}: no JSON ({error})"]
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    if not isinstance(value, dict):
        return [f"{path}: {_short(value)} where an object is expected"]
    return _wrong_settings(path, value) if path.name == CONFIG else []


def _wrong_settings(path: Path, settings: dict[str, Any]) -> list[str]:
    wrong = []
    names = settings.get("fast_tokenizer_files", [])
    if not isinstance(names, list) or any("/" in str(name) for name in names):
        wrong.append(f"{path}: fast_tokenizer_files {_short(names)}: expected names of files")
    if not isinstance(kind := settings.get("tokenizer_class"), str | None):
        wrong.append(f"{path}: tokenizer_class {_short(kind)}: expected a name")
    template = settings.get("chat_template")
    named = isinstance(template, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("name"), str)
        and isinstance(each.get("template"), str)
        for each in template
    )
    if not (named or isinstance(template, str | None)):
        wrong.append(
            f"{path}: chat_template {_short(template)}: expected a template, or a list of "
            '{"name", "template"}'
        )
    return wrong


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
