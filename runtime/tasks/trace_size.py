"""How large a trace will be, before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from isobit.errors import InputError

from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..forward.sites import Site, rank_columns, step_bytes
from ..scheduler.batch import Request, StepRows, advance, form_step
from ..settings.engine import SamplingSettings
from ..settings.trace import TraceSettings

RECORD_BYTES = 90
"""Of one part of one tensor in the index, digest and statistics included."""
WHILE_WRITTEN = 2
"""A safetensors file begins with a header that is known at the end: values are copied once."""


def longest_run(
    prompts: Sequence[list[int]], max_tokens: int, most_rows: int
) -> Iterator[StepRows]:
    """The steps of a greedy batch that no stop token ends, by the rules of the engine."""
    sampling = SamplingSettings(max_tokens=max_tokens, ignore_eos=True)
    requests = [Request(prompt=prompt, sampling=sampling) for prompt in prompts]
    while not all(request.finished for request in requests):
        rows = form_step(requests, most_rows)
        yield rows
        advance(requests, rows)
        for row in rows.sampled:
            requests[rows.owner[row]].commit(0, ())


def trace_bytes(
    settings: TraceSettings,
    sites: Sequence[Site],
    spec: ModelSpec,
    plan: ShardPlan,
    steps: Sequence[StepRows],
) -> tuple[int, int]:
    """Bytes of the values, and about those of the index, if every step is run."""
    values = index = 0
    for rank in range(plan.degree):
        wanted = [site for site in sites if settings.wants(site.name, rank)]
        atoms = len(plan.owned(rank))
        parts = sum(
            (atoms if site.cut != "whole" else 1)
            for site in wanted
            if rank_columns(site, spec, plan, rank)
        )
        for number, rows in enumerate(steps):
            if settings.steps is not None and number not in settings.steps:
                continue
            index += parts * RECORD_BYTES
            if "values" in settings.records:
                chosen = settings.positions
                counted = [
                    sum(chosen is None or rows.positions[row] in chosen for row in some)
                    for some in (range(len(rows.tokens)), rows.sampled)
                ]
                values += step_bytes(wanted, spec, plan, rank, *counted)
    return values, index


def check_disk(folder: Path, values: int, index: int) -> None:
    """Raise InputError E-TRACE-DISK when a disk has no room for a trace while it is written."""
    needed, free = values * WHILE_WRITTEN + index, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            "E-TRACE-DISK",
            f"{folder}: a trace of {values} bytes of values needs {needed} bytes while it is "
            f"written, {free} bytes are free. Choose fewer --sites, --ranks, --steps or "
            "--positions, fewer tokens, or --record digest,statistics",
        )
