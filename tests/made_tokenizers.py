"""Small tokenizers of the kinds that models have, trained on the spot by the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = (
    "the quick brown fox — naïve 🦊 jumps over don't you're the dog . ? ! , ' it 's 中文 テスト Ω"
)
CORPUS = [TEXT] * 20


def byte_level() -> Tokenizer:
    """GPT-2, Qwen2, Llama 3."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(made, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))


def byte_fallback() -> Tokenizer:
    """Llama 2, Mistral, Gemma: SentencePiece BPE, bytes for characters it does not know."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", *bytes_]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    # A trainer makes all of these special; in real files the bytes are plain tokens.
    fields = json.loads(_trained(made, trainer, added=False).to_str())
    fields["added_tokens"] = [each for each in fields["added_tokens"] if each["id"] < 3]
    return _with_added(Tokenizer.from_str(json.dumps(fields)))


def word_piece(cleanup: bool = True) -> Tokenizer:
    """BERT."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=cleanup)
    special = ["[UNK]", "[CLS]"]
    return _trained(made, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))


def unigram(prepend: str = "always") -> Tokenizer:
    """T5 and other SentencePiece unigram models."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace(prepend_scheme=prepend)
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=special)
    return _trained(made, trainer)


def word_ends() -> Tokenizer:
    """CLIP and the first GPT: a suffix at the end of words."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>"
    )
    return _trained(made, trainer)


def whole_words() -> Tokenizer:
    """No decoder at all: tokens with spaces between them."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(made, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))


def odd_sequence() -> Tokenizer:
    """Decoders in an order that nobody uses."""
    made = byte_fallback()
    made.decoder = decoders.Sequence(
        [
            decoders.Strip("▁", 2, 0),
            decoders.ByteFallback(),
            decoders.Metaspace(),
            decoders.Fuse(),
            decoders.Replace("q", "zz"),
            decoders.Strip(" ", 3, 0),
        ]
    )
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "word piece": word_piece,
    "word piece as it is": lambda: word_piece(cleanup=False),
    "unigram": unigram,
    "unigram without prepending": lambda: unigram("never"),
    "word ends": word_ends,
    "whole words": whole_words,
    "odd sequence": odd_sequence,
}


def save(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _trained(made: Tokenizer, trainer: Any, added: bool = True) -> Tokenizer:
    made.train_from_iterator(CORPUS, trainer)
    return _with_added(made) if added else made


def _with_added(made: Tokenizer) -> Tokenizer:
    made.add_special_tokens(["<|end|>"])
    made.add_tokens(["<|user|>", AddedToken("▁add"), AddedToken("né", lstrip=True)])
    return made
