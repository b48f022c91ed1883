"""Folders with tokenizer.model alone; the oracle is the sentencepiece library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from isobit.errors import DamagedError, EnvironmentFault, NotSupportedError
from isobit.launch.tokenizer.folder import is_sentencepiece
from isobit.launch.tokenizer.tokenizer import Tokenizer

from ...made_tokenizers import CORPUS

WAY_OUT = "some way out"


def _folder(
    path: Path, kind: str, model_type: str, normalization: str = "identity", **settings: object
) -> Path:
    """A model as Llama's was trained: nothing normalized, bytes for what it does not know."""
    path.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(path / "tokenizer"),
        vocab_size=340,
        model_type=kind,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name=normalization,
        remove_extra_whitespaces=normalization != "identity",
        minloglevel=2,
    )
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "LlamaTokenizer"}])
def test_ids_and_text_are_those_of_sentencepiece(model_type, settings, tmp_path):
    folder = _folder(tmp_path / "m", "bpe", model_type, **settings)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = Tokenizer(folder)
    assert tokenizer.eos_id == oracle.eos_id()
    for text in ("the lazy dog", "the  naïve\n🦀 x", "jumps ﬁ over"):
        ids = oracle.encode(text)
        assert tokenizer.encode(text, special=False) == ids
        assert tokenizer.decode(ids) == oracle.decode(ids) == text
        assert tokenizer.decode(ids, ids) == " " + text


def test_the_first_token_is_added_where_the_config_says_so(tmp_path):
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    tokenizer = Tokenizer(_folder(tmp_path / "m", "bpe", "llama", **settings))
    assert tokenizer.encode("the")[:1] == [1]


@pytest.mark.parametrize(("kind", "normalization"), [("bpe", "nmt_nfkc"), ("unigram", "identity")])
def test_a_conversion_that_differs_is_refused(kind, normalization, tmp_path):
    folder = _folder(tmp_path / "m", kind, "llama", normalization)
    with pytest.raises(NotSupportedError, match="in SentencePiece itself") as refused:
        Tokenizer(folder)
    assert refused.value.code == "E-TOKENIZER"


def test_a_file_that_is_no_model_is_damaged(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\0\1\2 nothing")
    with pytest.raises(DamagedError, match="no SentencePiece model") as refused:
        Tokenizer(tmp_path)
    assert refused.value.code == "E-TOKENIZER"


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken", "tiktoken.model"])
def test_files_of_tiktoken_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(NotSupportedError, match=f"{name}: a tokenizer in tiktoken's format"):
        Tokenizer(tmp_path)


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "piece" in name else name)
    with pytest.raises(EnvironmentFault, match=r"pip install 'isobit\[sentencepiece\]'"):
        is_sentencepiece(tmp_path, WAY_OUT)
