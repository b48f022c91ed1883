"""Text to token ids and back, with the model's own tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from .detokenizer import Detokenizer, TextStream, from_facts
from .limits import LOAD_CPU_S, LOAD_MEMORY_BYTES
from .process import PROCESS, Bounds

log = logging.getLogger("isobit.launch")

CODE, TEMPLATE_CODE = "E-TOKENIZER", "E-CHAT-TEMPLATE"
LOADING = Bounds(cpu_s=LOAD_CPU_S, memory_bytes=LOAD_MEMORY_BYTES)
# A template renders in milliseconds, and has no more to say than the messages.
TEMPLATE_CPU_S, TEMPLATE_BYTES = 5, 512 << 20
ENCODED_PER_S, BYTES_PER_CHARACTER = 50_000, 1000


class Tokenizer:
    """The tokenizer of a model folder. It runs in a process of its own, within bounds.

    Raises InputError E-TOKENIZER for a folder without one, DamagedError for files that are wrong,
    NotSupportedError for what isobit does not read or what does not load within bounds,
    EnvironmentFault when a library is missing; `remedy` is what works without a tokenizer.
    """

    def __init__(self, model: Path, remedy: str = "--prompt-ids 1,2,3 works without one") -> None:
        self.model, self._remedy = model, remedy
        facts = self._ask({"do": "load"}, LOADING, CODE, "loading the tokenizer")
        for line in facts["warnings"]:
            log.warning("%s: %s", model, line)
        self.chat_template: bool = facts["chat_template"]
        self.eos_id: int | None = facts["eos_id"]
        self.eos_token: str | None = facts["eos_token"]

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; `special` adds what the tokenizer puts around a text.

        Raises InputError E-TOKENIZER for a text that it cannot encode.
        """
        _check_characters([text], CODE)
        request = {"do": "encode", "texts": [text], "special": special}
        return self._ask(request, _for_text(len(text)), CODE, "encoding the text")[0]

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of one user message in the model's chat template; raises as encode_messages."""
        return self.encode_messages([{"role": "user", "content": text}])

    def encode_messages(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, "role" and "content" each, in the model's chat template.

        Raises InputError E-CHAT-TEMPLATE when there is none or it refuses these messages,
        DamagedError when it fails, NotSupportedError when it does not end within bounds.
        """
        if not self.chat_template:
            raise InputError(
                TEMPLATE_CODE,
                f"{self.model}: this model has no chat template. Leave out --chat, or put a "
                "chat_template.jinja there",
            )
        said = [text for message in messages for text in message.values()]
        _check_characters(said, TEMPLATE_CODE)
        request = {"do": "chat", "messages": list(messages)}
        bounds = _for_text(sum(map(len, said)))
        return self._ask(request, bounds, TEMPLATE_CODE, "the chat template")

    @cached_property
    def detokenizer(self) -> Detokenizer:
        """How ids become text; raises NotSupportedError E-TOKENIZER for an unknown decoder."""
        request = {"do": "decoding"}
        return from_facts(self._ask(request, LOADING, CODE, "reading the vocabulary"))

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """The text of an answer to a prompt, as its ids come."""
        return self.detokenizer.stream(prompt)

    def decode(self, ids: Sequence[int], prompt: Sequence[int] = ()) -> str:
        """The text of ids behind a prompt: all that a stream lets out."""
        return self.detokenizer.decode(ids, prompt)

    def _ask(self, request: dict[str, Any], bounds: Bounds, code: str, what: str) -> Any:
        folder = str(self.model.absolute())
        where = {"folder": folder, "remedy": self._remedy}
        return PROCESS.call({**request, **where}, bounds, code, f"{self.model}: {what}")


def _for_text(characters: int) -> Bounds:
    return Bounds(
        cpu_s=TEMPLATE_CPU_S + characters // ENCODED_PER_S,
        memory_bytes=TEMPLATE_BYTES + BYTES_PER_CHARACTER * characters,
    )


def _check_characters(texts: Sequence[str], code: str) -> None:
    """Raise InputError for halves of characters, as an argument that is no UTF-8 has them."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                code,
                f"character {error.start} of the text is {text[error.start]!r}, half of a "
                "character: give the text in UTF-8",
            ) from error
