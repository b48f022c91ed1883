"""What people see of an evaluation."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from ..text import Text
from .output import console


def print_report(result: dict[str, Any], text: Text) -> None:
    """A short table, and the verdict when there is one."""
    table = Table("", "value")
    table.add_row("perplexity", _number(result["perplexity"]))
    if result["reference"] is not None:
        table.add_row("perplexity of the reference", _number(result["reference_perplexity"]))
        table.add_row("increase", _percent(result["perplexity_increase"]))
        table.add_row("KL divergence, mean (nats)", _number(result["kl_mean"]))
        table.add_row("KL divergence, 99 % below", _number(result["kl_p99"]))
        table.add_row("KL divergence, worst", _worst(result["kl_worst"], text))
        table.add_row("same likeliest token", _percent(result["top1_agreement"]))
        table.add_row("greedy text", _greedy(result))
    console.print(table)
    console.print(
        f"{result['samples']} samples, {result['positions']} positions scored · tp {result['tp']}",
        style="dim",
    )
    for failure in result["failures"]:
        console.print(f"[bold red]failed[/] {failure}")
    if result["passed"]:
        console.print("[bold green]passed[/]")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def _percent(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2%}"


def _worst(worst: dict[str, Any], text: Text) -> str:
    token = escape(repr(text.decode([worst["token"]])))
    place = f"sample {worst['sample']}, position {worst['position']}, after {token}"
    return f"{_number(worst['value'])} ({place})"


def _greedy(result: dict[str, Any]) -> str:
    first, tokens = result["first_divergence"], result["greedy_tokens"]
    places = ", ".join("none" if index is None else str(index) for index in first)
    return f"first other token of {tokens}: {places}" if first else "no room for new tokens"
