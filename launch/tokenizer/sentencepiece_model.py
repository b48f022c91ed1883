"""Folders with tokenizer.model alone: SentencePiece models, converted and then compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaTokenizer

from ...kernels.errors import DamagedError, NotSupportedError
from .folder import CODE

PROBES = (
    "the quick brown fox",
    "a",
    "  two  spaces, a line\n\tand a tab ",
    "naïve Ünïcödé 中文 テスト 🦊 ﬁ ½",
    "def f(x):\n    return x['key'] + 1.50 # 100%",
)


def load_sentencepiece(path: Path, way_out: str) -> Any:
    """The tokenizer of a folder, checked against the sentencepiece library on a few texts.

    transformers converts these models by the class that the configs name, and its general
    conversion gives other ids for some of them: then Llama's is tried. Raises DamagedError for a
    file that is no model, NotSupportedError when no conversion encodes as the library does.
    """
    import sentencepiece

    model = path / "tokenizer.model"
    try:
        oracle: Any = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
        raise DamagedError(CODE, f"{model}: no SentencePiece model ({error}). {way_out}") from error
    differing = ""
    for kind in (AutoTokenizer, LlamaTokenizer):
        tokenizer: Any = kind.from_pretrained(path, trust_remote_code=False)
        found = ((text, tokenizer.encode(text, add_special_tokens=False)) for text in PROBES)
        different = [(text, ids) for text, ids in found if ids != oracle.encode(text)]
        if not different:
            return tokenizer
        text, ids = different[0]
        differing = f"{text!r} becomes {ids}, and {oracle.encode(text)} in SentencePiece itself"
    raise NotSupportedError(
        CODE,
        f"{model}: transformers' conversion encodes otherwise than the model does ({differing}). "
        f"Put a tokenizer.json beside it, or: {way_out}",
    )
