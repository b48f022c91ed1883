"""Token ids that end an answer: what the model's configs say, and what its tokenizer says."""

from __future__ import annotations

import logging

from ...shard.model.spec import ModelSpec
from .tokenizer import Tokenizer

log = logging.getLogger("isobit.launch")


def tokenizer_stop_ids(spec: ModelSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The end token of a tokenizer where the configs do not name it: then all of them end answers.

    Warns in one line of a disagreement, and of an end token that the model can never emit.
    """
    end = tokenizer.eos_id
    if end is None or end in spec.stop_ids:
        return ()
    name = f"{tokenizer.model}: the tokenizer's end token {tokenizer.eos_token!r} is id {end}"
    if end >= spec.vocab_size:
        log.warning(
            "%s, beyond the vocabulary of %d that config.json gives: it never comes",
            name,
            spec.vocab_size,
        )
        return ()
    configs = ", ".join(map(str, spec.stop_ids)) or "none"
    log.warning(
        "%s, and config.json and generation_config.json end answers at %s: all of them end an "
        "answer here",
        name,
        configs,
    )
    return (end,)
