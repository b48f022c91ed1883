"""Running a model once with a trace, and keeping the trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...shard.checkpoint.checkpoint import open_checkpoint
from ...shard.checkpoint.safetensors_file import SliceReader
from ...shard.checkpoint.write_file import check_new_folder
from ...shard.load.act_order import mlp_order
from ...shard.model.spec import ModelSpec
from ..engine.engine import Engine
from ..engine.preflight import prepare
from ..engine.results import Batch
from ..forward.sites import Site, model_sites
from ..ranks.launcher import Launcher
from ..scheduler.batch import check_requests
from ..scheduler.kv_pages import with_pages_for
from ..settings.engine import EngineSettings, SamplingSettings, run_dtype
from ..settings.trace import TraceSettings
from ..trace.folder import new_trace, write_index
from ..trace.index import TracedSite, TraceIndex, shape_of
from .trace_size import check_disk, longest_run, trace_bytes

PERMUTED = ("gate_proj.out", "up_proj.out", "down_proj.in")


@dataclass(frozen=True, kw_only=True)
class PlannedTrace:
    """What a trace will take: bytes of values and, about, of the index; steps at most."""

    values_bytes: int
    index_bytes: int
    steps: int


OnPlan = Callable[[PlannedTrace], None]
OnToken = Callable[[int, int], None]


def record_trace(
    model: Path,
    out: Path,
    settings: EngineSettings,
    trace: TraceSettings,
    prompts: Sequence[list[int]],
    sampling: SamplingSettings,
    new_launcher: Callable[[], Launcher],
    on_plan: OnPlan = lambda planned: None,
    on_token: OnToken = lambda request, token: None,
) -> TraceIndex:
    """Run a batch of prompts and write what `trace` asks for as the folder `out`.

    `trace.folder` is chosen here. `on_plan` is told the size before anything runs. Logits that
    are not finite end their request, and the trace is written all the same. Raises InputError
    E-OUT-EXISTS, E-OUT-PARENT, E-TRACE-DISK, E-TRACE-SETTINGS, and what Engine raises; nothing is
    left behind then.
    """
    with new_trace(out) as folder:
        settings, trace = _traced(folder, settings, trace, prompts, sampling)
        spec, plan = prepare(model, settings)
        check_requests(spec, prompts, [sampling] * len(prompts))
        dtype = run_dtype(spec, settings.dtype)
        sites = model_sites(spec, plan, dtype)
        steps = list(longest_run(prompts, sampling.max_tokens, settings.max_step_rows))
        values, index_bytes = trace_bytes(trace, sites, spec, plan, steps)
        on_plan(PlannedTrace(values_bytes=values, index_bytes=index_bytes, steps=len(steps)))
        check_disk(folder, values, index_bytes)
        with Engine(model, settings, new_launcher()) as engine:
            batch = engine.generate(prompts, [sampling] * len(prompts), on_token)
            engine.finish_trace()
            report = engine.ranks[0]
        chosen = report["all_reduce"]
        index = TraceIndex(
            source="isobit",
            model=str(model.absolute()),
            shape=shape_of(spec),
            dtype=str(dtype).removeprefix("torch."),
            degree=plan.degree,
            plan=plan.to_dict(),
            plan_hash=plan.content_hash(),
            all_reduce=chosen["name"],
            invariant=chosen["invariant"],
            software=report.get("software", {}),
            prompts=[len(prompt) for prompt in prompts],
            tokens=[
                [*prompt, *completion.tokens]
                for prompt, completion in zip(prompts, batch.completions, strict=True)
            ],
            errors=[completion.error for completion in batch.completions],
            settings=dataclasses.replace(trace, folder=None),
            sites=_recorded(sites, batch),
            steps=batch.steps,
            records=batch.traces,
            orders=_orders(model, spec, settings),
        )
        write_index(folder, index)
    return index


def check_trace(
    model: Path,
    out: Path,
    settings: EngineSettings,
    trace: TraceSettings,
    prompts: Sequence[list[int]],
    sampling: SamplingSettings,
) -> None:
    """Raise what record_trace would before it runs anything, but for the room on the disk."""
    check_new_folder(out)
    settings, _ = _traced(out, settings, trace, prompts, sampling)
    spec, _ = prepare(model, settings)
    check_requests(spec, prompts, [sampling] * len(prompts))


def _traced(
    folder: Path,
    settings: EngineSettings,
    trace: TraceSettings,
    prompts: Sequence[list[int]],
    sampling: SamplingSettings,
) -> tuple[EngineSettings, TraceSettings]:
    """The settings of a run that writes values into `folder`, with room for all its keys."""
    if "values" in trace.records:
        trace = dataclasses.replace(trace, folder=str(folder))
    settings = with_pages_for(settings, [len(prompt) + sampling.max_tokens for prompt in prompts])
    return dataclasses.replace(settings, trace=trace), trace


def _recorded(sites: Sequence[Site], batch: Batch) -> list[TracedSite]:
    """The sites that something was recorded at, in the order of the forward pass."""
    seen = {r.site for ranks in batch.traces for records in ranks for r in records}
    return [
        TracedSite(name=site.name, width=site.width, sampled=site.sampled)
        for site in sites
        if site.name in seen
    ]


def _orders(model: Path, spec: ModelSpec, settings: EngineSettings) -> dict[str, list[int]]:
    """Where act-order has moved columns: the checkpoint's column of each, by site."""
    if settings.load.format == "dummy":
        return {}
    checkpoint, found = open_checkpoint(model), {}
    with SliceReader() as reader:
        for layer in range(spec.layers):
            order = mlp_order(checkpoint, reader, spec, layer)
            if order is not None:
                found |= {f"layers.{layer}.mlp.{name}": order.tolist() for name in PERMUTED}
    return found
