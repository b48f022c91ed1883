"""Text as it comes is the decode of the whole, for every kind of tokenizer; oracle: tokenizers."""

from __future__ import annotations

import os
import random

import pytest
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from isobit.errors import NotSupportedError
from isobit.launch.tokenizer.detokenizer import Detokenizer

from ...made_tokenizers import KINDS, byte_fallback, byte_level, unigram

SEQUENCES = 300


def _detokenizer(made: Tokenizer, clean_up: bool = False) -> Detokenizer:
    tokens = {id_: made.id_to_token(id_) for id_ in range(made.get_vocab_size())}
    special = {each.content for each in made.get_added_tokens_decoder().values() if each.special}
    decoder = None if made.decoder is None else made.decoder.__getstate__().decode()
    return Detokenizer(tokens, special, decoder, clean_up=clean_up)


def _sequences(made: Tokenizer, seed: int) -> list[list[int]]:
    """Random ids, some that no token has; half of them mostly bytes, which are broken UTF-8."""
    rng = random.Random(seed)
    size = made.get_vocab_size()
    single = [id_ for id_ in range(size) if made.id_to_token(id_).startswith("<0x")] or range(256)
    return [
        [
            rng.choice(single) if number % 2 and rng.random() < 0.7 else rng.randrange(size + 3)
            for _ in range(rng.randrange(40))
        ]
        for number in range(SEQUENCES)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_decode_of_the_whole(kind):
    made = KINDS[kind]()
    detokenizer = _detokenizer(made)
    for ids in _sequences(made, seed=1):
        stream = detokenizer.stream()
        pieces = [stream.add([id_]) for id_ in ids]
        assert "".join([*pieces, stream.finish()]) == made.decode(ids), ids
        assert detokenizer.decode(ids) == made.decode(ids), ids


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_whole_less_what_it_shares_with_the_prompt(kind):
    made = KINDS[kind]()
    detokenizer = _detokenizer(made)
    rng = random.Random(2)
    for ids in _sequences(made, seed=2):
        cut = rng.randrange(len(ids) + 1)
        prompt, whole = made.decode(ids[:cut]), made.decode(ids)
        right = whole[len(os.path.commonprefix([prompt, whole])) :]  # noqa: RUF071 -- characters
        stream = detokenizer.stream(ids[:cut])
        pieces = []
        for id_ in ids[cut:]:
            pieces.append(stream.add([id_]))
            stream = stream.copy()
        assert "".join([*pieces, stream.finish()]) == right, (ids, cut)


@pytest.mark.parametrize("kind", ["word piece as it is", "unigram", "whole words"])
def test_cleaned_up_spaces_are_those_of_transformers(kind):
    made = KINDS[kind]()
    oracle = PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=True)
    detokenizer = _detokenizer(made, clean_up=True)
    rng = random.Random(3)
    marks = [made.token_to_id(mark) for mark in (".", "'", ",", "s", "▁", "don", "it")]
    marks = [mark for mark in marks if mark is not None]
    for ids in _sequences(made, seed=3):
        ids = [
            rng.choice(marks) if rng.random() < 0.7 else min(id_, len(oracle) - 1) for id_ in ids
        ]
        stream = detokenizer.stream()
        pieces = [stream.add([id_]) for id_ in ids]
        assert "".join([*pieces, stream.finish()]) == oracle.decode(ids, skip_special_tokens=True)


def test_a_copy_goes_on_alone():
    made = byte_level()
    detokenizer = _detokenizer(made)
    crab = made.encode("🦀").ids
    stream = detokenizer.stream()
    assert stream.add(crab[:-1]) == ""
    other = stream.copy()
    assert (stream.add(crab[-1:]), other.finish()) == ("🦀", "\ufffd")


def test_a_character_cut_by_the_prompt_belongs_to_the_answer():
    made = byte_level()
    crab = made.encode("🦀").ids
    assert _detokenizer(made).decode(crab[-1:], crab[:-1]) == "🦀"


def test_the_space_between_prompt_and_answer_stays():
    for made in (byte_fallback(), unigram()):
        prompt, answer = made.encode("the quick").ids, made.encode("brown fox").ids
        assert _detokenizer(made).decode(answer, prompt) == " brown fox"


def test_a_token_behind_bytes_that_are_no_character_lets_them_out():
    made = byte_fallback()
    stream = _detokenizer(made).stream()
    lone = made.token_to_id("<0x80>")
    assert [stream.add([lone]), stream.add([lone])] == ["", ""]
    (dog,) = made.encode("dog", add_special_tokens=False).ids[-1:]
    assert stream.add([dog]) == "\ufffd\ufffd" + made.decode([lone, dog])[1:]


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]), "ByteFallback"),
        (decoders.Sequence([decoders.Replace("a", "aaaa")] * 9), "times as long"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]), "'ab'"),
    ],
)
def test_a_decoder_without_a_stage_is_named(decoder, named):
    made = byte_level()
    made.decoder = decoder
    with pytest.raises(NotSupportedError, match=named) as refused:
        _detokenizer(made)
    assert refused.value.code == "E-TOKENIZER"
