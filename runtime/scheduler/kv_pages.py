"""How large a KV cache is: the one place where its pages are counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from ..settings.engine import PAGE_TOKENS, EngineSettings


def pages_for(tokens: int) -> int:
    """Pages of a sequence of that length."""
    return -(-tokens // PAGE_TOKENS)


def with_pages_for(settings: EngineSettings, lengths: Iterable[int]) -> EngineSettings:
    """The settings with a KV cache that holds sequences of these lengths at once."""
    return dataclasses.replace(settings, kv_pages=max(1, sum(map(pages_for, lengths))))
