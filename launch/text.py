"""Text to token ids and back, with the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..kernels.errors import InputError


class Text:
    """The tokenizer of a model folder.

    Raises InputError E-TOKENIZER when it cannot be loaded; its message ends with `hint`.
    """

    def __init__(self, model: Path, hint: str = "--prompt-ids 1,2,3 works without one") -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(
                "E-TOKENIZER",
                f"{model}: the tokenizer cannot be loaded ({str(error).splitlines()[0]}). {hint}",
            ) from error
        # Without its files transformers makes a tokenizer of the right class that knows no token.
        if not self._tokenizer.encode("a", add_special_tokens=False):
            raise InputError("E-TOKENIZER", f"{model}: the tokenizer has no vocabulary. {hint}")

    def encode(self, text: str) -> list[int]:
        # Without "verbose" a warning compares the length with what the tokenizer's config says.
        return self._tokenizer.encode(text, verbose=False)

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of one user message in the model's chat template."""
        if not self._tokenizer.chat_template:
            raise InputError("E-TOKENIZER", "--chat: this model has no chat template")
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_dict=False,
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
