"""`isobit bench`: how fast a model runs on this machine."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from ....runtime.engine.engine import Engine
from ....runtime.engine.preflight import prepare
from ....runtime.scheduler.batch import check_requests
from ....runtime.scheduler.kv_pages import with_pages_for
from ....runtime.settings.engine import SamplingSettings
from ....runtime.tasks.throughput import Throughput, Workload, measure
from ...models import model_folder
from ...printable import human_bytes
from ..options.common import Degree, Json, Model
from ..options.engine import EngineOptions
from ..options.grouped import grouped
from ..output import console, print_json, spinner
from .collectives import collectives
from .kernels import kernels

bench = typer.Typer(
    name="bench", help="Measure how fast kernels and models run here.", no_args_is_help=True
)


@bench.callback()
def group() -> None:
    """Measure how fast kernels and models run here."""


bench.command()(kernels)
bench.command()(collectives)


@bench.command()
@grouped
def throughput(
    model: Model,
    *,
    degree: Degree = 1,
    batch_size: Annotated[int, typer.Option(help="Prompts that run together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Length of each prompt.", min=1)] = 512,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="How often all of it is run.", min=1)] = 3,
    engine: EngineOptions,
    as_json: Json = False,
) -> None:
    """Time prefill and decode of one batch of random prompts; no tokenizer is needed."""
    folder = model_folder(model, weights=not engine.dummy)
    settings = with_pages_for(engine.settings(degree), [prompt_tokens + new_tokens] * batch_size)
    spec, _ = prepare(folder, settings)
    sampling = SamplingSettings(max_tokens=new_tokens, ignore_eos=True)
    check_requests(spec, [[0] * prompt_tokens] * batch_size, [sampling] * batch_size)
    workload = Workload(
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
    )
    with engine.launchers(degree, settings.device) as new_launcher:
        with spinner(f"starting {degree} ranks", as_json):
            started = Engine(folder, settings, new_launcher())
        with started, spinner("measuring", as_json):
            found = measure(started, workload)
    if as_json:
        print_json({**dataclasses.asdict(found), "rotary": spec.rotary.report()})
    else:
        _print(found, workload, degree)


def _print(found: Throughput, workload: Workload, degree: int) -> None:
    table = Table("", "time", "tokens/s", title=f"tp {degree}, batch {workload.batch_size}")
    table.add_row(
        f"prefill of {workload.prompt_tokens}",
        f"{found.prefill_s:.3f} s",
        f"{found.prefill_tokens_per_s:.0f}",
    )
    table.add_row(
        "decode step", f"{found.decode_ms_per_step:.2f} ms", f"{found.decode_tokens_per_s:.1f}"
    )
    console.print(table)
    console.print(
        f"{human_bytes(found.weights_bytes)} of weights a step; memory reads "
        f"{found.read_bandwidth_gb_s:.1f} GB/s: the least possible time is "
        f"{found.bandwidth_share:.0%} of a step. Outside kernels {found.overhead_share:.0%}, in "
        f"collectives {found.collectives_share:.0%}"
    )
