"""Sequences in flight and the steps they are cut into. Pure bookkeeping, no tensors."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from isobit.errors import InputError

from ...shard.model.spec import ModelSpec
from ..settings.engine import PAGE_TOKENS, SamplingSettings, check_sampling
from .kv_pages import pages_for


@dataclass(kw_only=True)
class Request:
    """The ledger's record of one request: what was asked, what was sent out, where it stands.

    `computed` tokens of `tokens` (prompt and emitted ids together) are in the KV cache.
    `finish_reason` is "stop", "length" or "error", with the reason in `error`.
    """

    prompt: list[int]
    sampling: SamplingSettings
    emitted: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    logits_digests: list[str] = field(default_factory=list)
    computed: int = 0
    finish_reason: str | None = None
    error: str | None = None

    @cached_property
    def sampling_fields(self) -> dict[str, Any]:
        """The sampling settings as a message carries them."""
        return asdict(self.sampling)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.emitted

    def commit(self, token: int, stop_ids: Seq[int]) -> None:
        """Add a token; the request ends at its limit or at a stop token."""
        self.emitted.append(token)
        stops = token in stop_ids or token in self.sampling.stop_ids
        if stops and not self.sampling.ignore_eos:
            self.finish_reason = "stop"
        elif len(self.emitted) >= self.sampling.max_tokens:
            self.finish_reason = "length"

    def fail(self, error: str) -> None:
        """End the request; its keys and values are given up."""
        self.finish_reason, self.error = "error", error
        self.pages = []


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """The rows of one step. Row i holds token `tokens[i]` at `positions[i]` of request `owner[i]`.

    `sampled` lists the rows whose logits are wanted, each the last token of its request. A token
    -1 - i stands for the one sampled from the i-th of these in the step before.
    """

    tokens: list[int]
    positions: list[int]
    owner: list[int]
    sampled: list[int]

    def again(self, steps: int) -> StepRows:
        """The step of the same requests `steps` later, each row the one sampled before it."""
        return StepRows(
            tokens=[-1 - place for place in range(len(self.sampled))],
            positions=[position + steps for position in self.positions],
            owner=self.owner,
            sampled=self.sampled,
        )


def check_requests(
    spec: ModelSpec, prompts: Seq[list[int]], sampling: Seq[SamplingSettings]
) -> None:
    """Raise InputError E-PROMPT naming every prompt that this model cannot run, E-SAMPLING."""
    wrong = []
    for number, (prompt, settings) in enumerate(zip(prompts, sampling, strict=True)):
        check_sampling(settings)
        if not prompt:
            wrong.append(f"prompt {number} is empty")
        if bad := [token for token in prompt if not 0 <= token < spec.vocab_size]:
            wrong.append(f"prompt {number}: token {bad[0]} is not in 0..{spec.vocab_size - 1}")
        if len(prompt) + settings.max_tokens > spec.max_positions:
            wrong.append(
                f"prompt {number}: {len(prompt)} tokens and {settings.max_tokens} new ones exceed "
                + room(spec)
            )
    if wrong:
        raise InputError("E-PROMPT", "\n".join(wrong))


def room(spec: ModelSpec) -> str:
    """How long a sequence may be, for a message, and how it may be longer where it may."""
    if spec.max_positions == spec.position_limit:
        return f"the model's {spec.max_positions} positions"
    return (
        f"the {spec.max_positions} tokens of a sequence; --max-model-len may be up to "
        f"{spec.position_limit}"
    )


def assign_pages(requests: Seq[Request], available: int) -> None:
    """Give every request the pages for its prompt and its longest answer.

    Raises InputError E-KV-CACHE when they do not fit together.
    """
    needs = [pages_for(len(r.prompt) + r.sampling.max_tokens) for r in requests]
    if sum(needs) > available:
        raise InputError(
            "E-KV-CACHE",
            f"the KV cache has {available} pages of {PAGE_TOKENS} tokens, {len(requests)} requests "
            f"need {sum(needs)} together. Ask for fewer or shorter answers",
        )
    first = 0
    for request, need in zip(requests, needs, strict=True):
        request.pages = list(range(first, first + need))
        first += need


def form_step(requests: Seq[Request], most_rows: int, most_sampled: int | None = None) -> StepRows:
    """Take the next rows of every unfinished request, at most `most_rows` in all.

    A prompt longer than the room left is cut; its logits come with its last piece. With
    `most_sampled` no more requests are sampled; those that would be wait for their turn.
    """
    rows = StepRows(tokens=[], positions=[], owner=[], sampled=[])
    for index, request in enumerate(requests):
        room = most_rows - len(rows.tokens)
        if request.finished or not room:
            continue
        tokens = request.tokens
        left = len(tokens) - request.computed
        if left <= room and len(rows.sampled) == most_sampled:
            continue
        piece = tokens[request.computed : request.computed + room]
        rows.tokens.extend(piece)
        rows.positions.extend(range(request.computed, request.computed + len(piece)))
        rows.owner.extend([index] * len(piece))
        if request.computed + len(piece) == len(tokens):
            rows.sampled.append(len(rows.tokens) - 1)
    return rows


def steps_after(requests: Seq[Request], steps: Seq[StepRows], most: int) -> list[StepRows]:
    """Up to `most` steps that follow `steps`, which are those not yet committed.

    They hold the requests that will not have reached their length by then, and end where the first
    of them does; one that ends at a stop token computes rows in vain. There are no such steps when
    all will have ended, or a prompt has pieces left.
    """
    after, rows, left = StepRows(tokens=[], positions=[], owner=[], sampled=[]), steps[-1], most
    sampled = {rows.owner[row]: place for place, row in enumerate(rows.sampled)}
    for index, request in enumerate(requests):
        if request.finished:
            continue
        if index not in sampled:
            return []
        place = sampled[index]
        missing = request.sampling.max_tokens - len(request.emitted) - len(steps)
        if missing <= 0:
            continue
        left = min(left, missing)
        after.sampled.append(len(after.tokens))
        after.tokens.append(-1 - place)
        after.positions.append(rows.positions[rows.sampled[place]] + 1)
        after.owner.append(index)
    return [after, *map(after.again, range(1, left))] if after.tokens else []


def advance(requests: Seq[Request], rows: StepRows) -> None:
    """Record that the rows of a step are in the KV cache."""
    for index in rows.owner:
        requests[index].computed += 1
