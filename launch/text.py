"""Text to token ids and back, with the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..kernels.errors import InputError


class Text:
    """The tokenizer of a model folder.

    Raises InputError E-TOKENIZER when it cannot be loaded; `way_out` is what works without one.
    """

    def __init__(self, model: Path, way_out: str = "--prompt-ids 1,2,3 works without one") -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(
                "E-TOKENIZER",
                f"{model}: the tokenizer cannot be loaded ({str(error).splitlines()[0]}). "
                + way_out,
            ) from error
        # transformers makes an empty tokenizer of a folder that holds only config.json.
        if not self._tokenizer.encode("a", add_special_tokens=False):
            raise InputError("E-TOKENIZER", f"{model}: no tokenizer in this folder. {way_out}")

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; `special` adds what the tokenizer puts around a text."""
        # Whether a text is too long is ours to say; the library warns of what we cut.
        return self._tokenizer.encode(text, verbose=False, add_special_tokens=special)

    @property
    def chat_template(self) -> bool:
        """Whether the model has one."""
        return bool(self._tokenizer.chat_template)

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of one user message in the model's chat template."""
        if not self.chat_template:
            raise InputError("E-TOKENIZER", "--chat: this model has no chat template")
        return self.encode_messages([{"role": "user", "content": text}])

    def encode_messages(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, "role" and "content" each, in a template that must exist."""
        return self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class TextStream:
    """Turns ids into pieces of text; a character cut between two tokens waits for the second."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> str:
        """Return the text that this token completes."""
        self._ids.append(token)
        whole = self._text.decode(self._ids)
        if whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        piece = whole[len(self._shown) :]
        self._shown = whole
        return piece

    def finish(self) -> str:
        """Return the rest: a character that was never completed."""
        return self._text.decode(self._ids)[len(self._shown) :]
