"""Entry point: the one place where errors become messages and exit statuses."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

from ...kernels.errors import InputError, IsobitError

INTERRUPTED = 130
NOT_READ = 141


def main() -> None:
    """Run the command line and exit.

    0 fine, 1 bad verdict, 2 wrong input or environment, 130 Ctrl-C, 141 nobody reads the output.
    """
    # torch would warn on every run between hosts whose addresses have no name. It asks once, early.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    try:
        status = _run("--json" in sys.argv[1:])
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        # What is still in the buffer would be written, and fail, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NOT_READ)
    except KeyboardInterrupt:
        sys.stderr.write("\nE-INTERRUPTED stopped; every process was ended\n")
        sys.exit(INTERRUPTED)


def _run(as_json: bool) -> int:
    if sys.argv[1:2] == ["doctor"]:
        # The doctor has to speak where nothing else can even be imported.
        from .doctor_without_torch import report_if_nothing_runs

        status = report_if_nothing_runs(sys.argv[2:], as_json)
        if status is not None:
            return status
    # torch takes a second to import; Ctrl-C in that second is an interrupt like any other.
    import typer

    from .app import UsageError, app
    from .output import print_error

    # Of handlers that are there already, such as those of a test runner, nothing is filtered.
    handler = logging.StreamHandler()
    handler.addFilter(_Once())
    handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        status = app(standalone_mode=False) or 0
    except IsobitError as error:
        print_error(error, as_json)
        return error.exit_status
    except UsageError as error:
        message = str(error.format_message())  # pyright: ignore
        if message or as_json:
            message = message or "no command given: see isobit --help"
            print_error(InputError("E-USAGE", message), as_json)
        return 2
    except SystemExit as ended:
        # click and rich end the process themselves, with 1, when a pipe is closed.
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    return status


class _Printable(logging.Formatter):
    """Warnings name tensors and files, and so what those who made them wrote there."""

    def format(self, record: logging.LogRecord) -> str:
        from ..printable import printable

        return printable(super().format(record))


class _Once(logging.Filter):
    """Lets each message through once: a config is read by several steps of one command."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self._seen
        self._seen.add(text)
        return new


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
