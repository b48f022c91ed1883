"""The KV cache of an LLM: how many pages it gets, and which prompts share it at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ...runtime.devices import CPU
from ...runtime.engine.preflight import prepare
from ...runtime.host_memory import available_memory
from ...runtime.scheduler.kv_pages import pages_for
from ...runtime.settings.engine import PAGE_TOKENS, EngineSettings, SamplingSettings, run_dtype
from ...shard.estimate.memory import kv_per_token

SHARE = 0.25
"""Of the memory that is free before weights are loaded, for keys and values of all ranks."""
TAKES_ALL = 0


def with_kv_pages(model: Path, settings: EngineSettings, sequences: int) -> EngineSettings:
    """The settings with pages for `sequences` of the longest length, as far as memory goes.

    A GPU gives all pages that there is room for. Raises as `prepare` does.
    """
    if settings.device != CPU:
        return dataclasses.replace(settings, kv_pages=TAKES_ALL)
    spec, plan = prepare(model, settings)
    pages = sequences * pages_for(spec.max_positions)
    if (free := available_memory()) is not None:
        # Ranks that share a head of keys and values keep it each.
        heads = sum(len(plan.kv_heads(rank)) for rank in range(plan.degree))
        width = run_dtype(spec, settings.dtype).itemsize
        page = PAGE_TOKENS * kv_per_token(spec, heads, width)
        pages = min(pages, max(1, int(SHARE * free) // page))
    return dataclasses.replace(settings, kv_pages=pages)


def batches(
    prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingSettings], pages: int, most: int
) -> list[range]:
    """Prompts in their order, cut where the next would not fit into `pages` or be over `most`.

    One that fits no cache is left alone, so that the engine refuses it.
    """
    found, first, used = [], 0, 0
    for index, (prompt, each) in enumerate(zip(prompts, sampling, strict=True)):
        needed = pages_for(len(prompt) + each.max_tokens)
        if index > first and (used + needed > pages or index - first == most):
            found.append(range(first, index))
            first, used = index, 0
        used += needed
    return [*found, range(first, len(prompts))] if prompts else []
