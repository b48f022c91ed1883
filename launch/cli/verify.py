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
from ...runtime.settings.engine import EngineSettings, at_degree
from ...runtime.tasks.verify import Verification
from ...runtime.tasks.verify import verify as run_verify
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import PlanSettings
from ..models import model_folder
from ..placing import chosen_device
from ..tokenizer.tokenizer import Tokenizer
from .options import (
    AllReduce,
    Atoms,
    CardShare,
    DeviceOption,
    DisableCustomAllReduce,
    Dtype,
    EnforceEager,
    GroupSize,
    Json,
    LauncherName,
    LauncherOption,
    Layout,
    LayoutName,
    LoadFormat,
    LoadFormatOption,
    MaxModelLen,
    Model,
    ModelFilesName,
    ModelFilesOption,
    Quantization,
    RayAddress,
    Threads,
    VerifyLoad,
    all_reduce_mode,
    launchers,
    load_settings,
    parse_ids,
)
from .output import console, print_json, progress_bar

DEFAULT_IDS = [1]
RANDOM_IDS = 8


def verify(
    model: Model,
    degrees: Annotated[str, typer.Option(help="Degrees to compare: 1,2,3,4.")] = "1,2",
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Repeat it for a batch.")
    ] = None,
    prompt_ids: Annotated[
        list[str] | None, typer.Option(help="Token ids: 1,2,3. Repeat it for a batch.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.")] = 16,
    replay: Annotated[
        Path | None,
        typer.Option(help="Prompts, degree and layout of a replay file, against degree 1."),
    ] = None,
    load_format: LoadFormatOption = LoadFormat.AUTO,
    quantization: Quantization = None,
    group_size: GroupSize = None,
    layout: Layout = LayoutName.PAD,
    atoms: Atoms = 8,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    device: DeviceOption = "auto",
    enforce_eager: EnforceEager = False,
    gpu_memory_utilization: CardShare = None,
    threads: Threads = 0,
    verify_load: VerifyLoad = False,
    all_reduce: AllReduce = "auto",
    disable_custom_all_reduce: DisableCustomAllReduce = False,
    launcher: LauncherOption = LauncherName.AUTO,
    ray_address: RayAddress = None,
    model_files: ModelFilesOption = ModelFilesName.AUTO,
    as_json: Json = False,
) -> None:
    """Run one batch at several degrees and compare every bit. Exit status 1 when they differ."""
    load = load_settings(load_format, quantization, group_size, verify_load)
    if prompt and load_format is LoadFormat.DUMMY:
        raise InputError(
            "E-USAGE", "--prompt needs a tokenizer, and dummy weights have none: give --prompt-ids"
        )
    folder = model_folder(model, weights=load_format is LoadFormat.AUTO)
    compared = _parse_degrees(degrees)
    replayed: list[list[int]] = []
    if replay is not None:
        if prompt or prompt_ids:
            raise InputError("E-USAGE", "--replay brings its own prompts")
        if max_model_len is not None:
            raise InputError("E-USAGE", "--replay brings its own --max-model-len")
        case = read_replay(replay)
        replayed, max_tokens, plan = case.prompts, case.max_tokens, case.plan
        max_model_len = case.max_model_len
        compared, atoms, layout = [1, plan.degree], plan.atoms, LayoutName(plan.layout)
    settings = EngineSettings(
        plan=PlanSettings(atoms=atoms, layout=layout.value),
        load=load,
        dtype=dtype,
        max_model_len=max_model_len,
        threads=threads,
        device=chosen_device(device, launcher, ray_address, max(compared)),
        enforce_eager=enforce_eager,
        gpu_memory_utilization=gpu_memory_utilization,
        verify_load=verify_load,
        all_reduce=all_reduce_mode(all_reduce, disable_custom_all_reduce),
        model_files=model_files.value,
    )
    plans = [dataclasses.replace(settings.plan, degree=degree) for degree in compared]
    specs = [prepare(folder, at_degree(settings, plan))[0] for plan in plans]
    prompts = replayed + [parse_ids(ids) for ids in prompt_ids or ()]
    if prompt:
        text = Tokenizer(folder)
        prompts += [text.encode(each) for each in prompt]
    if not prompts:
        prompts = [DEFAULT_IDS if load_format is LoadFormat.AUTO else _random_ids(specs[0])]
    with (
        progress_bar("starting") as bar,
        launchers(launcher, ray_address, max(compared), threads, settings.device) as new_launcher,
    ):
        task = bar.task_ids[0]
        bar.update(task, total=len(compared), completed=0)

        def show(what: str) -> None:
            bar.update(task, description=what, advance=bar.tasks[0].description != "starting")

        outcome = run_verify(folder, compared, settings, prompts, max_tokens, new_launcher, show)
    if as_json:
        print_json(outcome.report())
    else:
        _print_outcome(outcome, layout.value)
    if outcome.difference is not None:
        raise typer.Exit(1)


def _random_ids(spec: ModelSpec) -> list[int]:
    """The same few ids in every run."""
    drawn = random.Random(0)  # noqa: S311
    return [drawn.randrange(spec.vocab_size) for _ in range(RANDOM_IDS)]


def _parse_degrees(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(
            "E-VERIFY-DEGREES", f"--degrees {text!r}: expected integers between commas, as in 1,2,4"
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
            console.print(f"[bold green]agreed[/]: the ranks of degree {degrees} agree ({layout})")
            console.print("no other degree was compared", style="dim")
        else:
            console.print(
                f"[bold green]identical[/]: the same bits at degrees {degrees} ({layout})"
            )
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
        f"[bold red]different[/]: degrees {d.degrees[0]} and {d.degrees[1]} part at "
        f"[bold]{d.site}[/] "
        f"({d.part}), step {d.step}, rank {d.rank}"
    )
    if outcome.contract != "on":
        console.print(f"equal bits were not promised: {outcome.contract.partition(': ')[2]}")
