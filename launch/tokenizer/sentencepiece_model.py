"""Folders with tokenizer.model alone: SentencePiece models, converted and then compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaTokenizer

from isobit.errors import DamagedError, NotSupportedError

from .folder import CODE

# None begins with a space: there transformers adds no prefix of its own, and SentencePiece does.
PIECES_A_TEXT, MOST_PIECES = 200, 4000
PROBES = (
    "the quick brown fox",
    "a",
    "two  spaces, a line\n\tand a tab ",
    "naïve Ünïcödé 中文 テスト 🦊 ﬁ ½",
    "def f(x):\n    return x['key'] + 1.50 # 100%",
)


def load_sentencepiece(path: Path, remedy: str) -> Any:
    """The tokenizer of a folder, checked against the sentencepiece library on texts.

    transformers converts these models by the class that the configs name, and its general
    conversion gives other ids for some of them: then Llama's is tried. Raises DamagedError for a
    file that is no model, NotSupportedError when no conversion encodes as the library does.
    """
    import sentencepiece

    model = path / "tokenizer.model"
    try:
        oracle: Any = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
        raise DamagedError(CODE, f"{model}: no SentencePiece model ({error}). {remedy}") from error
    texts = [*PROBES, *_texts_of(oracle)]
    differing = ""
    for kind in (AutoTokenizer, LlamaTokenizer):
        tokenizer: Any = kind.from_pretrained(path, trust_remote_code=False)
        found = [(text, tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        different = [(text, ids) for text, ids in found if ids != oracle.encode(text)]
        if not different:
            return tokenizer
        text, ids = different[0]
        differing = f"{text!r} becomes {ids}, and {oracle.encode(text)} in SentencePiece itself"
    raise NotSupportedError(
        CODE,
        f"{model}: transformers' conversion encodes otherwise than the model does ({differing}). "
        f"Put a tokenizer.json beside it, or: {remedy}",
    )


def _texts_of(oracle: Any) -> list[str]:
    """Texts that use the model's pieces, evenly over its vocabulary, in orders of their own."""
    plain = [
        oracle.id_to_piece(id_).replace("▁", " ")
        for id_ in range(oracle.get_piece_size())
        if not (oracle.is_control(id_) or oracle.is_byte(id_) or oracle.is_unknown(id_))
    ]
    plain = plain[:: -(-len(plain) // MOST_PIECES)] if plain else []
    texts = [
        "x" + "".join(plain[i : i + PIECES_A_TEXT]) for i in range(0, len(plain), PIECES_A_TEXT)
    ]
    mixed = ["x" + "".join(plain[i::PIECES_A_TEXT]) for i in range(min(PIECES_A_TEXT, len(plain)))]
    return texts + mixed
