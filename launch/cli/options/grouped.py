"""A command that takes dataclasses of options: typer sees their fields as its parameters."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


def grouped(command: Callable[P, R]) -> Callable[..., R]:
    """The command with every parameter that is a dataclass replaced by the fields of that.

    A field is declared as typer declares a parameter: `name: Annotated[type, typer.Option(...)]`,
    with a default. Two parameters of one name raise TypeError.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[Any, list[str]]] = {}

    def add(parameter: inspect.Parameter) -> None:
        if parameter.name in parameters:
            raise TypeError(f"{command.__name__} has two parameters called {parameter.name}")
        parameters[parameter.name] = parameter

    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            add(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        fields = dataclasses.fields(kind)
        declared = get_type_hints(kind, include_extras=True)
        groups[name] = kind, [field.name for field in fields]
        for field in fields:
            add(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=declared[field.name],
                )
            )

    @functools.wraps(command)
    def run(**values: Any) -> R:
        for name, (kind, fields) in groups.items():
            values[name] = kind(**{field: values.pop(field) for field in fields})
        return command(**values)  # pyright: ignore[reportCallIssue]

    ordered = list(parameters.values())
    run.__signature__ = inspect.Signature(ordered)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {each.name: each.annotation for each in ordered}
    # typer would read the annotations of what is wrapped.
    del run.__wrapped__
    return run
