"""What people see of an evaluation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from ....runtime.evaluation.stability import first_repetition
from ...evaluation.evaluation import ModelRun
from ...evaluation.tasks import Choice, Task, accuracy, chosen
from ...tokenizer.tokenizer import Tokenizer
from ..output import console
from .turns_report import turn_rows


def task_report(
    tasks: list[Task], choices: list[Choice], ours: ModelRun, theirs: ModelRun | None
) -> dict[str, Any]:
    """Accuracy of the model and of its reference, as JSON has it."""
    runs = {"accuracy": ours, "reference_accuracy": theirs}
    result: dict[str, Any] = {"count": len(tasks), **dict.fromkeys(runs)}
    for name, run in runs.items():
        if run is not None and run.choices is not None:
            result[name] = accuracy(tasks, chosen(choices, run.choices))
    return result


def stress_report(ours: ModelRun, theirs: ModelRun | None) -> dict[str, Any]:
    """What the long texts of the model and of its reference show, as JSON has it."""
    result: dict[str, Any] = {"reference": None}
    for name, run in (("model", ours), ("reference", theirs)):
        if run is not None:
            found = first_repetition(run.stress)
            result[name] = {
                "tokens": len(run.stress),
                "error": run.stress_error,
                "repetition": None if found is None else asdict(found),
            }
    return result


def print_report(result: dict[str, Any], text: Tokenizer) -> None:
    """A short table, and the verdict when there is one."""
    table = Table("", "value")
    if result["positions"]:
        table.add_row("perplexity", number(result["perplexity"]))
    if result["reference"] is not None and result["positions"]:
        table.add_row("perplexity of the reference", number(result["reference_perplexity"]))
        table.add_row("increase", percent(result["perplexity_increase"]))
        table.add_row("KL divergence, mean (nats)", number(result["kl_mean"]))
        table.add_row("KL divergence, p99", number(result["kl_p99"]))
        table.add_row("KL divergence, worst", _worst(result["kl_worst"], text))
        table.add_row("top-1 agreement", percent(result["top1_agreement"]))
        table.add_row("greedy text", _greedy(result))
    if (tasks := result["tasks"]) is not None:
        table.add_row(f"accuracy, {tasks['count']} tasks", percent(tasks["accuracy"]))
        if tasks["reference_accuracy"] is not None:
            table.add_row("accuracy of the reference", percent(tasks["reference_accuracy"]))
    for name, seen in (result["stress"] or {}).items():
        if seen is not None:
            table.add_row(f"long text, {name}", _stress(seen))
    if result["turns"] is not None:
        for name, line in turn_rows(result["turns"]):
            table.add_row(name, line)
    console.print(table)
    scored = ""
    if result["positions"]:
        scored = f"{result['samples']} samples, {result['positions']} positions scored of "
        scored += f"{', '.join(result['text'])} · "
    console.print(f"{scored}tp {result['tp']}", style="dim", markup=False, soft_wrap=True)
    for failure in result["failures"]:
        console.print(f"[bold red]failed[/] {failure}")
    if result["passed"]:
        console.print("[bold green]passed[/]")


def number(value: float | None) -> str:
    """Five digits; a number that JSON has as null is not finite."""
    return "not finite" if value is None else f"{value:.5g}"


def percent(value: float | None, sign: str = "") -> str:
    """0.0215 -> "2.15%"; `sign` "+" shows that of positive numbers too."""
    return "not finite" if value is None else format(value, f"{sign}.2%")


def _worst(worst: dict[str, Any], text: Tokenizer) -> str:
    token = escape(repr(_inside_text(text, worst["token"])))
    place = f"sample {worst['sample']}, position {worst['position']}, after {token}"
    return f"{number(worst['value'])} ({place})"


def _inside_text(text: Tokenizer, token: int) -> str:
    """A token as it is in the middle of a text, where its space is not lost."""
    return text.decode([token], [token])


def _greedy(result: dict[str, Any]) -> str:
    first, tokens = result["first_divergence"], result["greedy_tokens"]
    places = ", ".join("none" if index is None else str(index) for index in first)
    return f"first other token of {tokens}: {places}" if first else "no room for new tokens"


def _stress(seen: dict[str, Any]) -> str:
    found = seen["repetition"]
    if found is None:
        return f"{seen['tokens']} tokens, no loop"
    period = "1 token" if found["period"] == 1 else f"{found['period']} tokens"
    return f"{seen['tokens']} tokens, a loop of {period} from token {found['index']} on"
