"""`isobit verify`: the same bits at every degree, or the first site where they part."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isobit.errors import InputError

from ...runtime.engine.preflight import prepare
from ...runtime.engine.replay import read_replay
from ...runtime.settings.engine import at_degree
from ...runtime.tasks.verify import Verification
from ...runtime.tasks.verify import verify as run_verify
from ...shard.model.spec import ModelSpec
from ..models import model_folder
from ..tokenizer.tokenizer import Tokenizer
from .options.common import Json, LayoutName, Model
from .options.engine import EngineOptions
from .options.grouped import grouped
from .options.panels import RANKS, SAMPLING
from .options.prompts import PromptOptions, ids_of
from .output import console, print_json, progress_bar

DEFAULT_IDS = [1]
RANDOM_IDS = 8


@grouped
def verify(
    model: Model,
    prompts: PromptOptions,
    *,
    sizes: Annotated[
        str,
        typer.Option(
            "--tensor-parallel-size",
            "-tp",
            rich_help_panel=RANKS,
            help="Numbers of ranks to compare: 1,2,3,4.",
        ),
    ] = "1,2",
    degrees: Annotated[
        str | None, typer.Option(hidden=True, help="The old name of --tensor-parallel-size.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(rich_help_panel=SAMPLING, help="Tokens to generate per prompt.")
    ] = 16,
    replay: Annotated[
        Path | None,
        typer.Option(help="Prompts, number of ranks and layout of a replay file, against 1 rank."),
    ] = None,
    engine: EngineOptions,
    as_json: Json = False,
) -> None:
    """Run one batch at several tensor-parallel sizes and compare every bit.

    Exit status 1 when they differ.
    """
    prompts.check(engine.dummy)
    if engine.check == "off":
        raise InputError("E-USAGE", "--check off: isobit verify compares the ranks")
    compared = _parse_sizes(sizes if degrees is None else degrees)
    replayed: list[list[int]] = []
    if replay is not None:
        if prompts.given:
            raise InputError("E-USAGE", "--replay brings its own prompts")
        if engine.max_model_len is not None:
            raise InputError("E-USAGE", "--replay brings its own --max-model-len")
        case = read_replay(replay)
        replayed, max_tokens, plan = case.prompts, case.max_tokens, case.plan
        compared = [1, plan.degree]
        engine = dataclasses.replace(
            engine,
            max_model_len=case.max_model_len,
            atoms=plan.atoms,
            layout=LayoutName(plan.layout),
        )
    folder = model_folder(model, weights=not engine.dummy)
    settings = engine.settings(1, max(compared))
    plans = [dataclasses.replace(settings.plan, degree=degree) for degree in compared]
    specs = [prepare(folder, at_degree(settings, plan))[0] for plan in plans]
    batch = replayed + ids_of(prompts.read(lambda: Tokenizer(folder)))
    if not batch:
        batch = [_random_ids(specs[0]) if engine.dummy else DEFAULT_IDS]
    with (
        progress_bar("starting") as bar,
        engine.launchers(max(compared), settings.device) as new_launcher,
    ):
        task = bar.task_ids[0]
        bar.update(task, total=len(compared), completed=0)

        def show(what: str) -> None:
            bar.update(task, description=what, advance=bar.tasks[0].description != "starting")

        outcome = run_verify(folder, compared, settings, batch, max_tokens, new_launcher, show)
    if as_json:
        print_json(outcome.report())
    else:
        _print_outcome(outcome, engine.layout.value)
    if outcome.difference is not None:
        raise typer.Exit(1)


def _random_ids(spec: ModelSpec) -> list[int]:
    """The same few ids in every run."""
    drawn = random.Random(0)  # noqa: S311
    return [drawn.randrange(spec.vocab_size) for _ in range(RANDOM_IDS)]


def _parse_sizes(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(
            "E-VERIFY-DEGREES",
            f"--tensor-parallel-size {text!r}: expected integers between commas, as in 1,2,4",
        ) from None


def _print_outcome(outcome: Verification, layout: str) -> None:
    table = Table("tp", "digest of logits and hidden states", "first tokens")
    for degree, result in outcome.degrees.items():
        tokens = result.batch.completions[0].tokens
        shown = " ".join(map(str, tokens[:8])) + (" …" if len(tokens) > 8 else "")
        table.add_row(str(degree), result.digest, shown)
    console.print(table)
    if outcome.difference is None:
        degrees = ", ".join(map(str, outcome.degrees))
        if len(outcome.degrees) == 1:
            console.print(f"[bold green]agreed[/]: the ranks of tp {degrees} agree ({layout})")
            console.print("no other size was compared", style="dim")
        else:
            console.print(f"[bold green]identical[/]: the same bits at tp {degrees} ({layout})")
        batch = next(iter(outcome.degrees.values())).batch
        count = len(batch.completions)
        console.print(
            f"{count} prompt{'s' if count > 1 else ''}, {len(batch.completions[0].tokens)} tokens "
            f"each, {len(batch.hidden_digests)} steps compared: every logit of every token and the "
            "residual stream of every row. pad and ragged cut differently and have digests of "
            "their own.",
            style="dim",
        )
        return
    d = outcome.difference
    console.print(
        f"[bold red]different[/]: tp {d.degrees[0]} and {d.degrees[1]} part at "
        f"[bold]{d.site}[/] "
        f"({d.part}), step {d.step}, rank {d.rank}"
    )
    if outcome.contract != "on":
        console.print(f"equal bits were not promised: {outcome.contract.partition(': ')[2]}")
