"""What came of a request, with the names of vLLM's RequestOutput."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One answer. `finish_reason` is "stop" or "length".

    `logits_digests` has one entry a token, over all its logits: equal digests are equal bits.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    logits_digest: str
    logits_digests: list[str]


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A finished request. `prompt` is None where token ids were given.

    `seed` is the one that tokens were drawn with.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    seed: int
    finished: bool = True
