"""Prompts on the command line: texts, or token ids where no tokenizer is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from isobit.errors import InputError

from ...tokenizer.tokenizer import Tokenizer
from .panels import PROMPTS


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The ids of a prompt, and its text where it was one."""

    ids: list[int]
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What a model goes on from. Both options can be repeated; ids come first."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            rich_help_panel=PROMPTS,
            help="The text to go on from. Repeat it for a batch.",
        ),
    ] = None
    prompt_ids: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=PROMPTS,
            help="Token ids instead of text: 1,2,3. No tokenizer is needed. Repeat it for a batch.",
        ),
    ] = None

    @property
    def given(self) -> bool:
        return bool(self.prompt or self.prompt_ids)

    def check(self, dummy: bool) -> None:
        """Raise InputError E-USAGE for a text where weights are made up."""
        if self.prompt and dummy:
            raise InputError(
                "E-USAGE",
                "--prompt: the answer of dummy weights is no text; give --prompt-ids 1,2,3",
            )

    def read(self, tokenizer: Callable[[], Tokenizer], chat: bool = False) -> list[Prompt]:
        """The prompts; `tokenizer` is called where there is a text.

        With `chat` a text is what a user says, put into the model's chat template. Raises
        InputError E-PROMPT for what are no ids, and as the tokenizer.
        """
        found = [Prompt(ids=parse_ids(ids)) for ids in self.prompt_ids or ()]
        if self.prompt:
            texts = tokenizer()
            encode = texts.encode_chat if chat else texts.encode
            found += [Prompt(ids=encode(text), text=text) for text in self.prompt]
        return found


def parse_ids(text: str) -> list[int]:
    """Parse "1,2,3"; raises InputError E-PROMPT."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            "E-PROMPT", f"--prompt-ids {text!r}: expected integers between commas, as in 1,2,3"
        ) from None


def parse_integers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Parse "0,1" of an option, each number once; None for None. Raises InputError E-USAGE."""
    try:
        return None if text is None else tuple(dict.fromkeys(int(n) for n in text.split(",")))
    except ValueError:
        raise InputError(
            "E-USAGE", f"{option} {text!r}: expected integers between commas, as in 0,1"
        ) from None


def ids_of(prompts: Sequence[Prompt]) -> list[list[int]]:
    return [prompt.ids for prompt in prompts]
