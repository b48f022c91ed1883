"""Conversations of several turns, held by a model on its own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ...runtime.engine.engine import Engine
from ...runtime.settings.engine import SamplingSettings
from ..text.text_files import read_json_lines
from ..tokenizer.stop_tokens import tokenizer_stop_ids
from ..tokenizer.tokenizer import Tokenizer

ANSWER_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One greedy answer. `prompt` has all that was said before; `error` ends the conversation."""

    conversation: int
    turn: int
    prompt: list[int]
    answer: list[int]
    error: str | None

    @property
    def transcript(self) -> list[int]:
        return self.prompt + self.answer

    @property
    def answered(self) -> slice:
        """Where among the scores of the transcript those of the answer lie."""
        return slice(len(self.prompt) - 1, len(self.transcript) - 1)


def read_conversations(path: Path) -> list[list[str]]:
    """What a user says turn by turn, a list of texts a line; raises InputError E-EVAL-TURNS."""
    return read_json_lines(path, "E-EVAL-TURNS", "conversations", _messages)


def check_conversations(
    text: Tokenizer, conversations: Sequence[list[str]], most_tokens: int
) -> None:
    """Raise InputError E-EVAL-TURNS naming conversations whose first turn leaves no room."""
    sizes = [len(_next_prompt(text, messages[:1], [])) for messages in conversations]
    wrong = [
        f"conversation {number}: the first turn has {size} tokens; the model has {most_tokens} "
        "positions"
        for number, size in enumerate(sizes)
        if size >= most_tokens
    ]
    if wrong:
        raise InputError("E-EVAL-TURNS", "\n".join(wrong))


def hold(
    engine: Engine, text: Tokenizer, number: int, messages: Sequence[str], most_tokens: int
) -> list[Turn]:
    """Hold one conversation: each turn is answered greedily, by at most ANSWER_TOKENS.

    Through the chat template, or where a model has none with every message on a line of its own.
    It ends early where `most_tokens` leave no room or a logit is not finite.
    """
    turns: list[Turn] = []
    stop_ids = tokenizer_stop_ids(engine.spec, text)
    for turn in range(len(messages)):
        prompt = _next_prompt(text, messages[: turn + 1], turns)
        room = min(ANSWER_TOKENS, most_tokens - len(prompt))
        if room < 1:
            break
        sampling = SamplingSettings(max_tokens=room, stop_ids=stop_ids)
        (completion,) = engine.generate([prompt], [sampling]).completions
        answer = completion.tokens
        if completion.finish_reason == "stop":
            answer = answer[:-1]
        turns.append(
            Turn(
                conversation=number,
                turn=turn,
                prompt=prompt,
                answer=answer,
                error=completion.error,
            )
        )
        if completion.error is not None:
            break
    return turns


def _next_prompt(text: Tokenizer, said: Sequence[str], turns: Sequence[Turn]) -> list[int]:
    """Token ids of all messages and of the answers between them."""
    if text.chat_template:
        history = [{"role": "user", "content": said[0]}]
        for turn, message in zip(turns, said[1:], strict=True):
            history.append({"role": "assistant", "content": text.decode(turn.answer, turn.prompt)})
            history.append({"role": "user", "content": message})
        return text.encode_messages(history)
    if not turns:
        return text.encode(said[0])
    return turns[-1].transcript + text.encode("\n" + said[-1] + "\n", special=False)


def _messages(value: Any) -> list[str]:
    """Raises ValueError for anything but a list of texts."""
    if not isinstance(value, list) or not value:
        raise ValueError('expected what the user says, turn by turn: ["first", "second"]')
    if not all(isinstance(each, str) and each.strip() for each in value):
        raise ValueError("every turn has to be text")
    return value
