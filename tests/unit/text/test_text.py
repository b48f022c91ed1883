"""Streaming text: what the terminal shows in the end is what --json says."""

from __future__ import annotations

import pytest

from isobit.launch.tokenizer.tokenizer import Tokenizer

from ...support import INT4


@pytest.mark.parametrize("text", ["def f():\n    return 'naïve 🦊 end'", "🦊", "plain"])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_pieces_add_up_to_the_text(text, cut):
    tokenizer = Tokenizer(INT4)
    ids = tokenizer.encode(text)
    ids = ids[: len(ids) - cut]
    stream = tokenizer.stream()
    pieces = [stream.add([token]) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids)
