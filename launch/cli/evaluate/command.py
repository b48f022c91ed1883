"""`isobit evaluate`: how good a model is on text, and how far from its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isobit.errors import InputError

from ....runtime.engine.preflight import prepare
from ....runtime.evaluation.evaluate import Gates, first_divergence, report
from ....runtime.evaluation.evaluate import evaluate as judge
from ....runtime.evaluation.score_samples import check_samples, positions_of
from ....runtime.scheduler.kv_pages import with_pages_for
from ...evaluation.evaluation import (
    MOST_PROMPTS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    Work,
    check_vocabularies,
    run_models,
    text_failures,
)
from ...evaluation.tasks import check_tasks, encode_tasks, read_tasks
from ...evaluation.turns import check_conversations, read_conversations
from ...models import model_folder
from ...text.evaluation_text import BUILT_IN
from ...text.samples import SHORTEST, cut_samples
from ...text.text_files import read_texts
from ...tokenizer.tokenizer import Tokenizer
from ..options.common import Degree, Json, Model
from ..options.engine import EngineOptions
from ..options.grouped import grouped
from ..output import print_json, progress_bar
from .report import print_report, stress_report, task_report
from .turns_report import turns_report

DEFAULT_LENGTH = 512
NOT_TAKEN = {
    "load_format": "scores text, which means nothing to dummy weights",
    "group_size": "takes no dummy weights",
}


@grouped
def evaluate(
    model: Model,
    *,
    reference: Annotated[
        str | None, typer.Option(help="The model that this one was made from: folder or id.")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="A text file in UTF-8. Repeat it for more.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens per sample: 512, or the models' limit if less.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Most samples, in the order of the text.")] = 16,
    tasks: Annotated[
        Path | None,
        typer.Option(help='Multiple choice: {"prompt", "choices": [..], "answer": 0} a line.'),
    ] = None,
    turns: Annotated[
        Path | None,
        typer.Option(help='Conversations: what the user says, ["first", "second", ..] a line.'),
    ] = None,
    stress: Annotated[
        bool, typer.Option("--stress", help="Greedy text to the context limit: does it loop?")
    ] = False,
    max_perplexity_increase: Annotated[
        float | None, typer.Option(help="Gate: 0.05 lets perplexity be 5 % above the reference's.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Gate: most mean KL divergence from the reference, nats.")
    ] = None,
    degree: Degree = 1,
    engine: EngineOptions,
    as_json: Json = False,
) -> None:
    """Score text with a model and its reference. Exit status 1 when a gate is not passed.

    Without --text isobit's own sample is scored, unless only tasks, stress or turns are asked for.
    """
    engine.refuse("evaluate", NOT_TAKEN)
    gates = Gates(perplexity_increase=max_perplexity_increase, kl=max_kl)
    _check_usage(reference, length, samples, gates)
    only_others = (tasks is not None or turns is not None or stress) and not gates.any
    files = text or ([] if only_others else [BUILT_IN])
    texts = read_texts(files, "E-EVAL-TEXT")
    asked = [] if tasks is None else read_tasks(tasks)
    conversations = [] if turns is None else read_conversations(turns)
    folder = model_folder(model)
    compared = None if reference is None else model_folder(reference)
    settings = engine.settings(degree)
    specs = [prepare(each, settings)[0] for each in (folder, compared) if each is not None]
    for spec in specs[1:]:
        check_vocabularies(specs[0], spec)
    limit = min(spec.max_positions for spec in specs)
    if length is not None and length > limit:
        raise InputError("E-USAGE", f"--length {length}: a model's limit is {limit} positions")
    tokenizer = Tokenizer(folder, "Text is cut into tokens by the model's own")
    cut = cut_samples(tokenizer, files, texts, length or min(DEFAULT_LENGTH, limit), samples)
    choices = encode_tasks(tokenizer, asked)
    check_conversations(tokenizer, conversations, limit)
    begin = cut[0] if cut else tokenizer.encode(BUILT_IN.read_text(encoding="utf-8"))
    prompt = begin[: min(PROMPT_TOKENS, limit // 2)]
    work = Work(
        samples=cut,
        choices=[choice.ids for choice in choices],
        stress_prompt=prompt,
        stress_tokens=limit - len(prompt) if stress else 0,
        conversations=conversations,
        text=tokenizer,
        most_tokens=limit,
    )
    for spec in specs:
        if cut:
            check_samples(spec, cut)
        check_tasks(spec, choices)
    longest = limit if stress or conversations else max(map(len, [*cut, *work.choices]))
    greedy = MOST_PROMPTS * [PROMPT_TOKENS + NEW_TOKENS]
    settings = max(
        settings,
        with_pages_for(settings, [longest]),
        with_pages_for(settings, greedy),
        key=lambda each: each.kv_pages,
    )
    with (
        progress_bar("starting") as bar,
        engine.launchers(degree, settings.device) as new_launcher,
    ):
        task = bar.task_ids[0]
        bar.update(task, total=positions_of(cut) * len(specs) or None, completed=0)
        ours, theirs = run_models(
            folder,
            compared,
            settings,
            work,
            new_launcher,
            lambda what, rows: bar.update(task, description=what, advance=rows),
        )
    reference_scores = None if theirs is None else theirs.scores
    outcome = judge(cut, ours.scores, reference_scores, gates, text_failures(ours))
    result = {
        "model": model,
        "reference": reference,
        "tp": degree,
        "rotary": specs[0].rotary.report(),
        "text": ["isobit's own sample" if file is BUILT_IN else str(file) for file in files],
        "samples": len(cut),
        "positions": positions_of(cut),
        **report(outcome, cut),
        "first_divergence": None
        if theirs is None
        else [first_divergence(a, b) for a, b in zip(ours.greedy, theirs.greedy, strict=True)],
        "greedy_tokens": None if theirs is None else NEW_TOKENS,
        "tasks": task_report(asked, choices, ours, theirs) if asked else None,
        "stress": stress_report(ours, theirs) if stress else None,
        "turns": turns_report(conversations, ours, theirs) if conversations else None,
        "gates": {"max_perplexity_increase": max_perplexity_increase, "max_kl": max_kl},
    }
    if as_json:
        print_json(result)
    else:
        print_report(result, tokenizer)
    if outcome.passed is False:
        raise typer.Exit(1)


def _check_usage(reference: str | None, length: int | None, samples: int, gates: Gates) -> None:
    """Raise InputError E-USAGE naming every option that cannot be."""
    wrong = []
    if length is not None and length < SHORTEST:
        wrong.append(f"--length {length}: expected {SHORTEST} or more")
    if samples < 1:
        wrong.append(f"--samples {samples}: expected 1 or more")
    asked = {"--max-perplexity-increase": gates.perplexity_increase, "--max-kl": gates.kl}
    for name, most in asked.items():
        if most is not None and reference is None:
            wrong.append(f"{name} needs a --reference to compare with")
        if most is not None and not 0 <= most < float("inf"):
            wrong.append(f"{name} {most}: expected 0 or more")
    if wrong:
        raise InputError("E-USAGE", "\n".join(wrong))
