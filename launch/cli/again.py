"""The command line of this run once more, with other options."""

from __future__ import annotations

import shlex
from typing import Any

import typer

NOT_REPEATED = {"as_json", "restart"}


def command_again(context: typer.Context, **changes: Any) -> str:
    """What to type to run the same command with some parameters changed, as a shell takes it.

    `changes` are by the name of the function's parameter; None leaves an option out. Options that
    have their defaults are left out, and what is for one run only.
    """
    values = {k: v for k, v in context.params.items() if k not in NOT_REPEATED} | changes
    words: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value = values.get(parameter.name or "")
        if value is None:
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif isinstance(value, bool):
            if value != parameter.default:
                off = parameter.secondary_opts
                options += [parameter.opts[0]] if value else off[:1]
        elif isinstance(value, list | tuple):
            for each in value:
                options += [parameter.opts[0], str(each)]
        elif value != parameter.default:
            options += [parameter.opts[0], str(value)]
    return shlex.join(["isobit", str(context.info_name), *words, *options])
