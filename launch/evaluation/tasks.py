"""Multiple choice: which of several continuations of a prompt is the likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ...runtime.evaluation.score_samples import Scores
from ...shard.model.spec import ModelSpec
from ..text.text_files import read_json_lines
from ..tokenizer.tokenizer import Tokenizer

FEWEST_CHOICES = 2


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt, what may follow it, and the index of what should."""

    prompt: str
    choices: list[str]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Token ids of a prompt with one choice; those from `first` on are the choice's."""

    task: int
    ids: list[int]
    first: int


def read_tasks(path: Path) -> list[Task]:
    """One {"prompt", "choices", "answer"} a line; raises InputError E-EVAL-TASKS, all lines."""
    return read_json_lines(path, "E-EVAL-TASKS", "tasks", _task)


def encode_tasks(text: Tokenizer, tasks: Sequence[Task]) -> list[Choice]:
    """The choices of all tasks; raises InputError E-EVAL-TASKS for those that cannot be scored.

    Where a token of one choice crosses the end of the prompt, scoring begins there for all choices
    of the task: each is then as likely as the whole text, up to what they share.
    """
    choices: list[Choice] = []
    wrong = []
    for number, task in enumerate(tasks):
        prompt = text.encode(task.prompt)
        whole = [text.encode(task.prompt + choice) for choice in task.choices]
        first = min(_shared(prompt, ids) for ids in whole)
        if not first:
            wrong.append(f"task {number}: no token of the prompt comes before every choice")
        wrong += [
            f"task {number}, choice {place}: no token of its own"
            for place, ids in enumerate(whole)
            if len(ids) <= first
        ]
        choices += [Choice(task=number, ids=ids, first=first) for ids in whole]
    if wrong:
        raise InputError("E-EVAL-TASKS", "\n".join(wrong))
    return choices


def check_tasks(spec: ModelSpec, choices: Sequence[Choice]) -> None:
    """Raise InputError E-EVAL-TASKS naming the tasks that a model cannot score."""
    wrong = [
        f"task {choice.task}: {len(choice.ids)} tokens with a choice; the model has "
        f"{spec.max_positions} positions"
        for choice in choices
        if len(choice.ids) > spec.max_positions
    ]
    wrong += [
        f"task {choice.task}: token {bad[0]} is not in 0..{spec.vocab_size - 1}"
        for choice in choices
        if (bad := [token for token in choice.ids if token >= spec.vocab_size])
    ]
    if wrong:
        raise InputError("E-EVAL-TASKS", "\n".join(dict.fromkeys(wrong)))


def chosen(choices: Sequence[Choice], scores: Scores) -> list[int | None]:
    """Per task, the choice of greatest log-likelihood; None when a logit was not finite."""
    sums: dict[int, list[float]] = {}
    start = 0
    for choice in choices:
        end = start + len(choice.ids) - 1
        found = scores.log_probabilities[start + choice.first - 1 : end]
        sums.setdefault(choice.task, []).append(math.fsum(found))
        start = end
    return [None if any(map(math.isnan, each)) else each.index(max(each)) for each in sums.values()]


def accuracy(tasks: Sequence[Task], picks: Sequence[int | None]) -> float:
    """The share of tasks whose answer was chosen."""
    right = sum(task.answer == pick for task, pick in zip(tasks, picks, strict=True))
    return right / len(tasks)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many token ids two lists begin with alike."""
    differ = (i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    return next(differ, min(len(a), len(b)))


def _task(fields: Any) -> Task:
    """Raises ValueError for anything but a task."""
    if not isinstance(fields, dict) or set(fields) != {"prompt", "choices", "answer"}:
        raise ValueError('expected {"prompt": text, "choices": [texts], "answer": index}')
    prompt, choices, answer = fields["prompt"], fields["choices"], fields["answer"]
    if not isinstance(prompt, str) or not isinstance(choices, list):
        raise ValueError("prompt has to be text, choices a list")
    if len(choices) < FEWEST_CHOICES or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"choices: expected {FEWEST_CHOICES} texts or more")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer!r}: expected an index from 0 to {len(choices) - 1}")
    return Task(prompt=prompt, choices=choices, answer=answer)
