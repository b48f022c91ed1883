"""The end of `isobit quantize`: what was lost, in the report, on the page and on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from isobit.errors import IsobitError

from ....shard.model.spec import read_spec
from ....shard.plan.modules import layer_modules
from ....shard.quantize.report import QuantizeReport, extend_report
from ....shard.quantize.scheme import QuantizeSettings
from ...evaluation.advice import GROUP_SIZES, Made, suggestions
from ...evaluation.quantize_evaluation import ROUGH, Plan, evaluate_quantized, loss
from ...pages.quantization_page import PAGE, write_page
from ..evaluate.report import number, percent
from ..output import console, errors, progress_bar
from .options import QuantizeOptions

UNFINISHED = "The evaluation did not come to its end."


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model as it was named and where it lies, and how it was quantized."""

    name: str
    folder: Path
    options: QuantizeOptions
    stored: QuantizeSettings


def evaluate_output(
    out: Path,
    source: Source,
    report: QuantizeReport,
    plan: Plan | None,
    again: Callable[[Mapping[str, Any]], str],
) -> dict[str, Any] | None:
    """Evaluate a folder that is whole, and complete its report and page; None without a plan.

    `again` is the command line of this run with other parameters. Whatever fails or is interrupted
    here, the folder stays, and the message says so.
    """
    made = {
        "model": source.name,
        "method": source.options.method.value,
        "scheme": source.options.named_scheme,
        "source_bytes": report.source_bytes,
        "written_bytes": report.written_bytes,
    }
    evaluation: dict[str, Any] | None = None
    if plan is not None:
        evaluation = {"skipped": plan.reason if plan.text is None else UNFINISHED}
    try:
        contents = extend_report(out, {"made": made, "evaluation": evaluation})
        write_page(out, contents)
        if plan is None or plan.text is None:
            return evaluation
        with progress_bar("evaluating") as bar:
            evaluation = evaluate_quantized(
                out,
                source.folder,
                plan.text,
                lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
            )
        if not evaluation["passed"] and not evaluation["not_finite"]["positions"]:
            evaluation["advice"] = _advice(out, source, contents["modules"], again)
        write_page(out, extend_report(out, {"evaluation": evaluation}))
    except KeyboardInterrupt:
        errors.print(f"\n{_stays(out, source)}", markup=False, soft_wrap=True)
        raise
    except IsobitError as error:
        raise type(error)(error.code, f"{error.message}\n{_stays(out, source)}") from error
    return evaluation


def _stays(out: Path, source: Source) -> str:
    later = shlex.join(["isobit", "evaluate", str(out), "--reference", source.name])
    return f"{out} is whole and stays; only its evaluation is missing: {later}"


def _advice(
    out: Path,
    source: Source,
    modules: Mapping[str, Mapping[str, Any]],
    again: Callable[[Mapping[str, Any]], str],
) -> list[dict[str, str]]:
    """What to try instead, each with its command."""
    options, stored = source.options, source.stored
    sizes = {module.k for module in layer_modules(read_spec(source.folder), 0).values()}
    made = Made(
        method=options.method.value,
        scheme=options.made.value,
        format=options.format.value,
        group_size=stored.group_size,
        mixed=bool(stored.keep) or options.budget is not None,
        has_text=bool(options.text) or options.dataset is not None,
        divisors=tuple(g for g in GROUP_SIZES if not any(k % g for k in sizes)),
        modules=modules,
    )
    return [
        {"why": each.why, "command": again({**each.changes, "out": f"{out}-{each.name}"})}
        for each in suggestions(made)
    ]


def show_evaluation(out: Path, evaluation: dict[str, Any] | None, plan: Plan | None) -> None:
    """A table of before and after, then what to try; one line where there was no evaluation."""
    if evaluation is None or plan is None:
        console.print("not evaluated: --no-evaluate", style="dim")
    elif "skipped" in evaluation:
        console.print(f"not evaluated: {evaluation['skipped']}", markup=False, soft_wrap=True)
    else:
        _show(evaluation, plan.reason)
    console.print(f"HTML report: {out / PAGE}", style="dim", markup=False, soft_wrap=True)


def _show(evaluation: dict[str, Any], reason: str) -> None:
    table = Table("", "before", "after", "change")
    table.add_row(
        "perplexity",
        number(evaluation["reference_perplexity"]),
        number(evaluation["perplexity"]),
        percent(evaluation["perplexity_increase"], "+"),
    )
    kl = f"{number(evaluation['kl_mean'])}, p99 {number(evaluation['kl_p99'])}"
    table.add_row("KL divergence, mean (nats)", "", kl, "")
    table.add_row("top-1 agreement", "", percent(evaluation["top1_agreement"]), "")
    console.print(table)
    console.print(
        f"{evaluation['samples']} samples of {evaluation['length']} tokens: {evaluation['text']}"
        + (f" ({reason})" if reason else "")
        + (f". {ROUGH}" if evaluation["rough"] else ""),
        style="dim",
        markup=False,
    )
    if evaluation["not_finite"]["positions"]:
        for failure in evaluation["failures"]:
            console.print(f"[bold red]broken[/] {failure}")
    elif not evaluation["passed"]:
        console.print(f"[bold yellow]much was lost[/]: {loss(evaluation)}. To try:")
        for each in evaluation["advice"]:
            console.print(f"- {each['why']}", markup=False)
            console.print(f"  {each['command']}", markup=False, soft_wrap=True, style="bold")
