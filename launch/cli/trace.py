"""`isobit trace`: chosen tensors of a run, kept in a folder for `isobit compare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from isobit.errors import InputError

from ...runtime.devices import CPU, refuse_cuda
from ...runtime.engine.preflight import prepare
from ...runtime.settings.engine import EngineSettings, SamplingSettings, run_dtype
from ...runtime.settings.trace import RECORDS, TraceSettings
from ...runtime.tasks.record_trace import PlannedTrace, check_trace, record_trace
from ...runtime.trace.folder import read_trace
from ...runtime.trace.index import TraceIndex
from ..models import model_folder
from ..printable import human_bytes
from ..record_transformers import load_transformers, record_transformers
from ..tokenizer.tokenizer import Tokenizer
from .options.common import Degree, Json, Model
from .options.engine import EngineOptions
from .options.grouped import grouped
from .options.panels import SAMPLING
from .options.prompts import PromptOptions, ids_of, parse_integers
from .output import console, errors, print_json, progress_bar, spinner


@grouped
def trace(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    prompts: PromptOptions,
    *,
    max_tokens: Annotated[
        int,
        typer.Option(rich_help_panel=SAMPLING, help="Tokens to generate per prompt, greedily."),
    ] = 1,
    record: Annotated[
        str, typer.Option(help="What to keep of a site: digest, statistics, values.")
    ] = ",".join(RECORDS),
    sites: Annotated[
        list[str] | None,
        typer.Option(help="A pattern of site names: 'layers.*.mlp.*'. Repeat it for more."),
    ] = None,
    ranks: Annotated[str | None, typer.Option(help="Only these ranks: 0,1.")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Only these forward passes, counted from 0: 0,5.")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Values of these token positions alone: 0,49,50.")
    ] = None,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="Let transformers run the model, on one rank.")
    ] = False,
    degree: Degree = 1,
    engine: EngineOptions,
    as_json: Json = False,
) -> None:
    """Write what a run computes at chosen sites: digests, statistics, values."""
    if transformers:
        refuse_cuda(engine.device, "--transformers")
        engine = dataclasses.replace(engine, device=CPU)
    settings = engine.settings(degree)
    if not prompts.given:
        raise InputError("E-USAGE", "give --prompt TEXT or --prompt-ids 1,2,3")
    prompts.check(engine.dummy)
    wanted = TraceSettings(
        records=tuple(record.split(",")),
        sites=tuple(sites or ("*",)),
        ranks=parse_integers("--ranks", ranks),
        steps=parse_integers("--steps", steps),
        positions=parse_integers("--positions", positions),
    )
    folder = model_folder(model, weights=not engine.dummy)
    batch = ids_of(prompts.read(lambda: Tokenizer(folder)))
    sampling = SamplingSettings(max_tokens=max_tokens, ignore_eos=True)
    check_trace(folder, out, settings, wanted, batch, sampling)
    if transformers:
        index = _with_transformers(folder, out, settings, wanted, batch, max_tokens, as_json)
    else:
        with (
            progress_bar("starting") as bar,
            engine.launchers(degree, settings.device) as new_launcher,
        ):
            task = bar.task_ids[0]

            def planned(size: PlannedTrace) -> None:
                bar.update(task, total=len(batch) * max_tokens, completed=0)
                if not as_json:
                    errors.print(
                        f"values: {human_bytes(size.values_bytes)}, index: about "
                        f"{human_bytes(size.index_bytes)}, in up to {size.steps} steps",
                        style="dim",
                    )

            index = record_trace(
                folder,
                out,
                settings,
                wanted,
                batch,
                sampling,
                new_launcher,
                planned,
                lambda request, token: bar.update(task, description="tokens", advance=1),
            )
    result = _report(out, index)
    if as_json:
        print_json(result)
    else:
        _print(result, index)


def _with_transformers(
    folder: Path,
    out: Path,
    settings: EngineSettings,
    wanted: TraceSettings,
    prompts: list[list[int]],
    max_tokens: int,
    silent: bool,
) -> TraceIndex:
    ours = EngineSettings(dtype=settings.dtype)
    narrowed = (wanted.ranks, wanted.steps, wanted.positions) != (None, None, None)
    if settings != ours or narrowed or max_tokens != 1:
        raise InputError(
            "E-USAGE",
            "--transformers takes --dtype, --record, --sites and prompts: it has one rank, and "
            "records every position of what it is given",
        )
    spec, _ = prepare(folder, ours)
    with spinner("transformers", silent):
        model = load_transformers(folder, run_dtype(spec, settings.dtype))
        record_transformers(model, prompts, out, records=wanted.records, sites=wanted.sites)
        with read_trace(out) as trace:
            return trace.index


def _report(out: Path, index: TraceIndex) -> dict[str, Any]:
    """What was written, as `isobit trace --json` prints it."""
    return {
        "trace": str(out),
        "source": index.source,
        "model": index.model,
        "dtype": index.dtype,
        "tp": index.degree,
        "rotary_variant": (index.plan or {}).get("rotary_variant") or None,
        "records": list(index.settings.records),
        "sites": len(index.sites),
        "steps": len(index.steps),
        "rows": sum(len(step.tokens) for step in index.steps),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "tokens": [tokens[at:] for tokens, at in zip(index.tokens, index.prompts, strict=True)],
        "errors": [error for error in index.errors if error],
        "first_non_finite": _first(index, "first_non_finite_row"),
        "first_beyond_fp16": _first(index, "first_beyond_fp16_row"),
    }


def _first(index: TraceIndex, kind: str) -> dict[str, Any] | None:
    """The first site, in the first step, that has a bad number, by the statistics."""
    order = {site.name: i for i, site in enumerate(index.sites)}
    for number, ranks in enumerate(index.records):
        found = [
            (order[record.site], rank, record)
            for rank, records in enumerate(ranks)
            for record in records
            if record.statistics is not None and getattr(record.statistics, kind) is not None
        ]
        if found:
            _, rank, record = min(found, key=lambda item: item[:2])
            sampled = next(site.sampled for site in index.sites if site.name == record.site)
            step, row = index.steps[number], getattr(record.statistics, kind)
            row = step.sampled[row] if sampled else row
            assert record.statistics is not None
            return {
                "site": record.site,
                "part": record.part,
                "rank": rank,
                "step": number,
                "request": step.owner[row],
                "position": step.positions[row],
                "absmax": record.statistics.absmax,
            }
    return None


def _print(result: dict[str, Any], index: TraceIndex) -> None:
    table = Table(show_header=False)
    table.add_row("trace", f"[bold]{result['trace']}[/], {human_bytes(result['bytes'])}")
    table.add_row("of", f"{index.source}, {index.dtype}, tp {index.degree}")
    table.add_row("sites", f"{result['sites']}, {', '.join(result['records'])}")
    table.add_row("rows", f"{result['rows']}, steps: {result['steps']}")
    for kind, name in (("first_non_finite", "not finite"), ("first_beyond_fp16", "beyond fp16")):
        if (at := result[kind]) is not None:
            table.add_row(
                name,
                f"first at [bold]{at['site']}[/] ({at['part']}), rank {at['rank']}, "
                f"position {at['position']}: greatest finite magnitude {at['absmax']:.4g}",
            )
    for error in result["errors"]:
        table.add_row("[bold red]error[/]", error)
    console.print(table)
