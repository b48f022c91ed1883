"""`isobit doctor`: why is the output wrong? One verdict with its evidence, and what to do next."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from isobit.errors import InputError

from ....runtime.devices import CPU, refuse_cuda
from ....runtime.doctor.all_checks import CHECKS
from ....runtime.doctor.case import Case
from ....runtime.doctor.context import Context
from ....runtime.doctor.diagnosis import Diagnosis, decisive
from ....runtime.doctor.examine import examine
from ....runtime.doctor.findings import CheckResult
from ....runtime.doctor.replay_case import read_case, write_case
from ....shard.model.spec import read_spec
from ...models import model_folder
from ...pages.doctor_page import GENERATOR
from ...pages.own_page import check_page
from ...tokenizer.tokenizer import Tokenizer
from ..options.common import Degree, Json, LayoutName
from ..options.engine import EngineOptions
from ..options.grouped import grouped
from ..options.panels import OUTPUT, SAMPLING
from ..options.prompts import PromptOptions, ids_of
from ..output import errors, progress_bar
from .report import print_check, show_diagnosis

SHORT, LONG = 8, 52
"""Two prompts by default: some kernels take another path from 51 rows on."""
SMALLEST_VOCABULARY = 64
GPU_CHECK = "isobit gpu check examines GPUs"
NOT_TAKEN = {
    "load_format": "examines what files hold",
    "quantization": "finds out itself what files hold",
    "group_size": "finds out itself what files hold",
    "check": "compares the ranks at every site in any case",
    "verify_load": "compares the loaded shards with the file in any case",
}
USAGE = (
    "E-PLAN-DEGREE",
    "E-PLAN-ATOMS",
    "E-PLAN-LAYOUT",
    "E-PLAN-LENGTH",
    "E-DTYPE",
    "E-THREADS",
    "E-PROMPT",
    "E-COLL-MODE",
    "E-USAGE",
)


@grouped
def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model folder, or a Hugging Face id.")
    ] = None,
    *,
    prompts: PromptOptions,
    max_tokens: Annotated[
        int, typer.Option(rich_help_panel=SAMPLING, help="Tokens to generate per prompt.")
    ] = 4,
    reference: Annotated[str | None, typer.Option(help="The model before quantization.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes long.")] = False,
    replay: Annotated[
        Path | None, typer.Option(help="Examine the case of a file that an earlier run wrote.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(rich_help_panel=OUTPUT, help="Write the report as one HTML page."),
    ] = None,
    degree: Degree = 2,
    engine: EngineOptions,
    as_json: Json = False,
) -> None:
    """Find out why the output is wrong. Exit status 1 for every verdict but healthy."""
    if (model is None) == (replay is None):
        raise InputError("E-USAGE", "give a MODEL, or --replay FILE, which names one")
    engine.refuse("doctor", NOT_TAKEN)
    refuse_cuda(engine.device, "isobit doctor", GPU_CHECK)
    engine = dataclasses.replace(engine, device=CPU)
    if html is not None:
        check_page(html, GENERATOR)
    told: dict[str, Any] = {}
    if replay is not None:
        told = read_case(replay)
        model, reference = told["model"], told["reference"]
        degree, max_tokens, quick = told["tp"], told["max_tokens"], told["quick"]
        engine = dataclasses.replace(
            engine,
            atoms=told["atoms"],
            layout=LayoutName(told["layout"]),
            dtype=told["dtype"],
            all_reduce=told["all_reduce"],
            max_model_len=told["max_model_len"],
        )
    assert model is not None
    folder = model_folder(model)
    batch = [*told.get("prompts", ()), *ids_of(prompts.read(lambda: Tokenizer(folder)))]
    case = Case(
        model=folder,
        engine=engine.settings(degree),
        prompts=tuple(map(tuple, batch)) or _default_prompts(folder, engine.max_model_len),
        max_tokens=max_tokens,
        quick=quick,
        reference=None if reference is None else model_folder(reference),
    )
    with engine.launchers(degree, case.engine.device) as new_launcher:
        diagnosis = _examined(Context(case, new_launcher), as_json)
    raise typer.Exit(show_diagnosis(diagnosis, html, as_json))


def _examined(context: Context, as_json: bool) -> Diagnosis:
    with context, progress_bar("starting") as bar:
        task = bar.task_ids[0]
        bar.update(task, total=len(CHECKS), completed=0)
        _refuse_bad_usage(context)

        def show(name: str, result: CheckResult | None) -> None:
            if result is None:
                bar.update(task, description=name)
                return
            bar.advance(task)
            if not as_json:
                print_check(result)

        results = examine(context, CHECKS, show)
    diagnosis = Diagnosis(case=context.case.report(), checks=results, decisive=decisive(results))
    if diagnosis.decisive is None:
        return diagnosis
    try:
        return dataclasses.replace(diagnosis, repro=str(write_case(diagnosis)))
    except OSError as error:
        errors.print(f"no replay file: {error}", style="dim")
        return diagnosis


def _refuse_bad_usage(context: Context) -> None:
    """Raise InputError for what no model could run; a bad model is a finding, not an error."""
    try:
        context.prepared()
    except InputError as error:
        if error.code in USAGE:
            raise


def _default_prompts(folder: Path, max_model_len: int | None) -> tuple[tuple[int, ...], ...]:
    """The same ids in every run, within the vocabulary where that is known."""
    try:
        spec = read_spec(folder, max_model_len)
        vocabulary, positions = spec.vocab_size, spec.max_positions
    except InputError:
        vocabulary, positions = SMALLEST_VOCABULARY, LONG + SHORT
    drawn = random.Random(0)  # noqa: S311
    lengths = [length for length in (SHORT, LONG) if length + SHORT <= positions] or [1]
    return tuple(tuple(drawn.randrange(vocabulary) for _ in range(n)) for n in lengths)
