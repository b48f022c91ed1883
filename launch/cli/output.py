"""What people and programs see: rich text on a terminal, or one JSON object with --json."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment

from isobit.errors import IsobitError

from ...runtime.progress import OnBytes
from ..printable import printable

LONG_S = 3600.0


class _Console(Console):
    """A console that lets no control character of what is printed through to the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def on_broken_pipe(self) -> None:
        """Leave it to main, which knows what a closed pipe means for the exit status."""
        raise BrokenPipeError


# Without emoji: in names such as org/texts:train: rich would see a picture of one.
console = _Console(highlight=False, emoji=False)
errors = _Console(stderr=True, highlight=False, emoji=False)


def print_json(value: dict[str, Any]) -> None:
    """Write one JSON object to standard output and nothing else there."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_error(error: IsobitError, as_json: bool) -> None:
    """One message: on standard error for people, as JSON on standard output for programs.

    In JSON it has its kind: misused, damaged, not-supported, environment or rank.
    """
    if as_json:
        print_json({"error": {"code": error.code, "kind": error.kind, "message": error.message}})
    else:
        errors.print(f"[bold red]{error.code}[/] ", end="")
        errors.print(error.message, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """A progress bar on standard error; silent where that is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
        # Short and long steps take turns: only a long look back tells the time that is left.
        speed_estimate_period=LONG_S,
    ) as progress:
        progress.add_task(description, total=None)
        yield progress


@contextmanager
def bytes_bar(description: str) -> Iterator[OnBytes]:
    """A progress bar of bytes on standard error, with speed and time left; silent elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(
        *columns,
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as shown:
        task = shown.add_task(description, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def spinner(text: str, silent: bool) -> Iterator[None]:
    """A spinner on standard error while something slow runs."""
    if silent or not errors.is_terminal:
        yield
        return
    with errors.status(text):
        yield
