"""End tokens of configs and tokenizer: all of them end an answer, and a difference is told."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from isobit.launch.tokenizer.stop_tokens import tokenizer_stop_ids
from isobit.launch.tokenizer.tokenizer import Tokenizer
from isobit.runtime.scheduler.batch import Request
from isobit.runtime.settings.engine import SamplingSettings
from isobit.shard.model.spec import read_spec

from ...made_tokenizers import byte_level, save
from ...support import INT4

END = byte_level().token_to_id("<|end|>")


@pytest.mark.parametrize(
    ("in_configs", "vocabulary", "more", "told"),
    [
        ((END,), 2000, (), None),
        ((7,), 2000, (END,), f"id {END}, and config.json and generation_config.json end"),
        ((), 2000, (END,), "end answers at none"),
        ((7,), END, (), f"id {END}, beyond the vocabulary of {END}"),
    ],
)
def test_what_ends_an_answer(in_configs, vocabulary, more, told, tmp_path, caplog):
    tokenizer = Tokenizer(save(tmp_path / "m", byte_level(), eos_token="<|end|>"))
    spec = dataclasses.replace(read_spec(INT4), stop_ids=in_configs, vocab_size=vocabulary)
    with caplog.at_level(logging.WARNING):
        assert tokenizer_stop_ids(spec, tokenizer) == more
    assert [told in record.message for record in caplog.records] == ([True] if told else [])


def test_a_stop_id_of_a_request_ends_it():
    request = Request(prompt=[1], sampling=SamplingSettings(max_tokens=9, stop_ids=(5,)))
    request.commit(4, (7,))
    assert request.finish_reason is None
    request.commit(5, (7,))
    assert request.finish_reason == "stop"
