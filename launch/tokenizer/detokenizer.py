"""Token ids to text, as they come: one stream for each answer, cheap to copy."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from typing import Any

from isobit.errors import NotSupportedError

from .decoders import CleanUp, Stage, UnsupportedDecoder, stages


class Detokenizer:
    """How the ids of one tokenizer become text. Immutable; shared by all its streams.

    Special tokens are left out, and ids without a token: as `tokenizers` decodes. Raises
    NotSupportedError E-TOKENIZER for a decoder that cannot be followed token by token.
    """

    def __init__(
        self,
        tokens: dict[int, str],
        special: Set[str],
        decoder: str | None,
        *,
        clean_up: bool = False,
    ) -> None:
        self._tokens = {id_: token for id_, token in tokens.items() if token not in special}
        try:
            self._stages = stages(None if decoder is None else json.loads(decoder))
        except UnsupportedDecoder as error:
            raise NotSupportedError(
                "E-TOKENIZER",
                f"the decoder of tokenizer.json cannot be followed token by token: {error}. "
                "--prompt-ids works without a tokenizer",
            ) from error
        if clean_up:
            self._stages.append(CleanUp())

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """A stream of the text that follows a prompt."""
        return TextStream(self._tokens, [stage.copy() for stage in self._stages], prompt)

    def decode(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> str:
        """The text of ids behind a prompt: all that a stream lets out."""
        stream = self.stream(prompt)
        return stream.add(ids) + stream.finish()


class TextStream:
    """The text of an answer as its ids come.

    All pieces together are the decode of prompt and answer, less the longest beginning that it
    shares with the decode of the prompt alone. A piece is let out once no further id can change
    it: a character cut between two tokens waits for the second.
    """

    def __init__(
        self, tokens: dict[int, str], fresh: list[Stage], prompt: Sequence[int] = ()
    ) -> None:
        self._tokens, self._stages = tokens, fresh
        self._seen = ""
        if prompt:
            self._push(prompt)
            alone = self.copy()
            # What the prompt leaves in doubt is its own as far as it stays what it is now.
            self._seen = alone.finish()

    def add(self, ids: Sequence[int]) -> str:
        """Return the text that these ids complete."""
        return self._new(self._push(ids))

    def finish(self) -> str:
        """Return the rest: what waited for more."""
        rest = ""
        for number, stage in enumerate(self._stages):
            rest += "".join(_through(self._stages[number + 1 :], stage.end()))
        return self._new(rest)

    def copy(self) -> TextStream:
        """A stream that goes on from here on its own."""
        other = TextStream(self._tokens, [stage.copy() for stage in self._stages])
        other._seen = self._seen
        return other

    def _push(self, ids: Sequence[int]) -> str:
        found = self._tokens
        tokens = [token for id_ in ids if (token := found.get(id_)) is not None]
        return "".join(_through(self._stages, tokens)) if tokens else ""

    def _new(self, text: str) -> str:
        if not self._seen or not text:
            return text
        pairs = zip(self._seen, text, strict=False)
        most = min(len(self._seen), len(text))
        shared = next((place for place, (a, b) in enumerate(pairs) if a != b), most)
        self._seen = self._seen[shared:] if shared == len(text) else ""
        return text[shared:]


def _through(later: Sequence[Stage], tokens: list[str]) -> list[str]:
    for stage in later:
        if not tokens:
            return tokens
        tokens = stage.push(tokens)
    return tokens


def from_facts(facts: dict[str, Any]) -> Detokenizer:
    """The detokenizer that the facts of a loaded tokenizer describe."""
    ids, texts = facts["ids"], facts["tokens"]
    return Detokenizer(
        dict(zip(ids, texts, strict=True)),
        frozenset(facts["special"]),
        facts["decoder"],
        clean_up=facts["clean_up"],
    )
