"""What the process of tokenizers does: load a folder, encode, render chat templates.

The libraries behind it raise whatever they like for files that are wrong: bare exceptions, and
panics that are no Exception at all. This is the one place where all of it is caught.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jinja2
import transformers.utils.logging as transformers_logging
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from isobit.errors import DamagedError, InputError, IsobitError, NotSupportedError

from . import folder as files
from .limits import LOAD_CPU_S, LOAD_MEMORY_BYTES, limit

MOST_LOADED = 4
PROBE_CPU_S, PROBE_BYTES = 2, 256 << 20
NOT_MINE = (KeyboardInterrupt, SystemExit, GeneratorExit)
_loaded: OrderedDict[tuple[str, str], Any] = OrderedDict()


class _Kept(logging.Handler):
    """Keeps what transformers warns of, for the process that asked."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


_kept = _Kept()
transformers_logging.disable_default_handler()
transformers_logging.add_handler(_kept)
transformers_logging.disable_progress_bar()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request: {"value"}, or {"error": [kind, code, message]}."""
    limit(request["cpu_s"], request["memory_bytes"])
    try:
        return {"value": OPERATIONS[request["do"]](request)}
    except IsobitError as error:
        kind = error.kind if isinstance(error, InputError) else "environment"
        return {"error": [kind, error.code, error.message]}


def load(request: dict[str, Any]) -> dict[str, Any]:
    """What the other side has to know of a tokenizer."""
    _kept.lines.clear()
    tokenizer = _tokenizer(request)
    return {
        "eos_id": _eos_id(tokenizer),
        "eos_token": tokenizer.eos_token,
        "chat_template": bool(tokenizer.chat_template),
        "warnings": list(dict.fromkeys(_kept.lines)),
    }


def decoding(request: dict[str, Any]) -> dict[str, Any]:
    """What a Detokenizer is made of."""
    tokenizer = _tokenizer(request)
    if type(tokenizer)._decode is not PreTrainedTokenizerFast._decode:
        raise NotSupportedError(
            files.CODE, f"{type(tokenizer).__name__} decodes in a way of its own"
        )
    backend = tokenizer.backend_tokenizer
    vocabulary = backend.get_vocab(with_added_tokens=True)
    top = max(vocabulary.values(), default=-1)
    # A vocabulary may name one token twice, and then the table forgets an id.
    dense = top < 4 * len(vocabulary) + 1024
    ids = list(range(top + 1)) if dense else sorted(set(vocabulary.values()))
    known = [(id_, token) for id_ in ids if (token := backend.id_to_token(id_)) is not None]
    added = backend.get_added_tokens_decoder().values()
    decoder = backend.decoder
    return {
        "ids": [id_ for id_, _ in known],
        "tokens": [token for _, token in known],
        "special": [token.content for token in added if token.special],
        "decoder": None if decoder is None else decoder.__getstate__().decode(),
        "clean_up": bool(tokenizer.clean_up_tokenization_spaces)
        and not _ignores_clean_up(tokenizer),
    }


def encode(request: dict[str, Any]) -> list[list[int]]:
    """Token ids of each text."""
    tokenizer = _tokenizer(request)
    special = request["special"]
    try:
        return [
            # Whether a text is too long is not the tokenizer's to say: it would warn.
            list(tokenizer.encode(text, verbose=False, add_special_tokens=special))
            for text in request["texts"]
        ]
    except MemoryError:
        raise _too_much_memory(
            request["memory_bytes"], files.CODE, f"{request['folder']}: encoding the text"
        ) from None
    except NOT_MINE:
        raise
    except BaseException as error:
        raise InputError(
            files.CODE,
            f"{request['folder']}: the tokenizer cannot encode the text ({_said(error)})",
        ) from error


def chat(request: dict[str, Any]) -> list[int]:
    """Token ids of a conversation in the model's chat template."""
    tokenizer, code = _tokenizer(request), "E-CHAT-TEMPLATE"
    where = f"{request['folder']}: the chat template"
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" not in template:
        raise NotSupportedError(
            code, f"{where}s are called {', '.join(sorted(template))}, and none of them default"
        )
    source = template["default"] if isinstance(template, dict) else template
    try:
        ids = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_dict=False
        )
    except jinja2.TemplateSyntaxError as error:
        line = (source.splitlines() or [""])[min(error.lineno, len(source.splitlines())) - 1]
        raise DamagedError(
            code, f"{where} has an error in line {error.lineno} ({error.message}): {line.strip()!r}"
        ) from error
    except jinja2.exceptions.SecurityError as error:
        raise NotSupportedError(
            code, f"{where} does what no template may ({_said(error)})"
        ) from error
    except jinja2.TemplateNotFound as error:
        raise _other_template(code, where) from error
    except jinja2.TemplateError as error:
        if type(error) is jinja2.TemplateError:
            raise InputError(code, f"{where} refuses these messages: {_said(error)}") from error
        raise DamagedError(code, f"{where} fails: {_said(error)}") from error
    except MemoryError:
        raise _too_much_memory(request["memory_bytes"], code, where) from None
    except NOT_MINE:
        raise
    except BaseException as error:
        if isinstance(error, TypeError) and "no loader" in str(error):
            raise _other_template(code, where) from error
        raise DamagedError(code, f"{where} fails: {_said(error)}") from error
    return list(ids)


def _other_template(code: str, where: str) -> NotSupportedError:
    return NotSupportedError(
        code,
        f"{where} takes another template from a file (include, import or extends), which "
        "transformers does not do either. Put its text into this one",
    )


OPERATIONS = {"load": load, "decoding": decoding, "encode": encode, "chat": chat}


def _tokenizer(request: dict[str, Any]) -> Any:
    """The tokenizer of a folder, from memory or from its files."""
    key = request["folder"], request["remedy"]
    if key in _loaded:
        _loaded.move_to_end(key)
        return _loaded[key]
    path, remedy = Path(key[0]), key[1]
    limit(LOAD_CPU_S, LOAD_MEMORY_BYTES)
    files.check_folder(path, remedy)
    alone = files.is_sentencepiece(path, remedy)
    try:
        if alone:
            from .sentencepiece_model import load_sentencepiece

            tokenizer: Any = load_sentencepiece(path, remedy)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        limit(PROBE_CPU_S, PROBE_BYTES)
        empty = not tokenizer.encode("a", verbose=False, add_special_tokens=False)
    except IsobitError:
        raise
    except MemoryError:
        raise _too_much_memory(
            LOAD_MEMORY_BYTES, files.CODE, f"{path}: loading the tokenizer"
        ) from None
    except NOT_MINE:
        raise
    except BaseException as error:
        raise _refusal(path, error, remedy) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise NotSupportedError(
            files.CODE,
            f"{path}: {type(tokenizer).__name__} has no form in the tokenizers library. {remedy}",
        )
    if empty and len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise DamagedError(
            files.CODE, f"{path}: the tokenizer has no token but {len(tokenizer)} added. {remedy}"
        )
    limit(request["cpu_s"], request["memory_bytes"])
    _loaded[key] = tokenizer
    while len(_loaded) > MOST_LOADED:
        _loaded.popitem(last=False)
    return tokenizer


def _refusal(path: Path, error: BaseException, remedy: str) -> IsobitError:
    """What to say of a folder that transformers does not load, and which file it is about."""
    said = _said(error)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return NotSupportedError(
            files.CODE,
            f"{path}: this tokenizer's library opens no path that is no UTF-8. {remedy}",
        )
    settings = path / files.CONFIG
    if settings.exists() and "auto_map" in json.loads(settings.read_bytes()):
        return NotSupportedError(
            files.CODE,
            f"{settings}: a tokenizer with code of its own (auto_map), which isobit never runs. "
            + remedy,
        )
    file = path / "tokenizer.json"
    if file.exists():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(file))
        except NOT_MINE:
            raise
        except BaseException as own:  # noqa: BLE001 -- libraries raise anything
            return DamagedError(files.CODE, f"{file}: {_said(own)}. {remedy}")
    others = [name for name in files.SETTINGS if (path / name).exists()]
    about = f"{path}/{' and '.join(others)}: wrong for" if others else f"{path}: wrong files of"
    return DamagedError(files.CODE, f"{about} this tokenizer ({said}). {remedy}")


def _too_much_memory(most_bytes: int, code: str, what: str) -> NotSupportedError:
    return NotSupportedError(code, f"{what} needs more than {most_bytes >> 20} MiB of memory")


def _ignores_clean_up(tokenizer: Any) -> bool:
    """transformers cleans up after word pieces; for BPE it takes a setting with a long name."""
    meant = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    return type(tokenizer.backend_tokenizer.model).__name__ == "BPE" and not meant


def _eos_id(tokenizer: Any) -> int | None:
    id_ = None if tokenizer.eos_token is None else tokenizer.eos_token_id
    return id_ if isinstance(id_, int) else None


def _said(error: BaseException) -> str:
    """The first line of what a library says, with the kind of error where that is not plain."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    name = type(error).__name__
    return f"{name}: {first}" if first and name != "Exception" else first or name
