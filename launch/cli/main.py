"""Entry point: the one place where errors become messages and exit statuses."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from types import FrameType

from isobit.errors import InputError, IsobitError

from ...kernels.unexpected import unexpected, wants_traceback
from ..endings import leave

INTERRUPTED = 130
NOT_READ = 141
STARTS_RANKS = ("generate", "verify", "trace", "evaluate")


def main() -> None:
    """Run the command line and exit.

    0 fine, 1 bad verdict, 2 wrong input or environment, or a fault of isobit, 130 Ctrl-C, 141
    nobody reads the output. ISOBIT_TRACEBACK=1 shows where an error was raised.
    """
    as_json = "--json" in sys.argv[1:]
    # torch would warn on every run between hosts whose addresses have no name. It asks once, early.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    try:
        leave(_reported(as_json))
    except BrokenPipeError:
        _give_up_output()
        leave(NOT_READ)
    except KeyboardInterrupt:
        sys.stderr.write("\nE-INTERRUPTED stopped; every process was ended\n")
        leave(INTERRUPTED)


def _reported(as_json: bool) -> int:
    """The exit status of the run; what it raises is reported, whatever it is."""
    try:
        status = _run(as_json)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        raise
    except IsobitError as error:
        return _report(error, error, as_json)
    except Exception as error:  # noqa: BLE001
        # The one broad catch of the driver: a traceback is no message, and its exit status 1
        # would be read as a verdict.
        return _report(unexpected(error), error, as_json)


def _report(error: IsobitError, raised: Exception, as_json: bool) -> int:
    if wants_traceback():
        traceback.print_exception(raised)
    try:
        from .output import print_error

        print_error(error, as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (ImportError, OSError):
        # What prints is broken itself, or its disk is full.
        if as_json or isinstance(raised, ImportError):
            sys.stderr.write(f"{error.code} {error.message}\n")
        _give_up_output()
    return error.exit_status


def _give_up_output() -> None:
    """Drop what is still in the buffer: it would be written, and fail, once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(as_json: bool) -> int:
    if sys.argv[1:2] == ["doctor"]:
        # The doctor has to speak where nothing else can even be imported.
        from .doctor.without_torch import report_if_nothing_runs

        status = report_if_nothing_runs(sys.argv[2:], as_json)
        if status is not None:
            return status
    _start_early(sys.argv[1:])
    # torch takes a second to import; Ctrl-C in that second is an interrupt like any other.
    import typer

    from .app import UsageError, make_app
    from .output import print_error

    # Of handlers that are there already, such as those of a test runner, nothing is filtered.
    handler = logging.StreamHandler()
    handler.addFilter(_Once())
    handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        status = make_app(next(iter(sys.argv[1:]), ""))(standalone_mode=False) or 0
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


def _start_early(words: list[str]) -> None:
    """Start the processes that the command will need: that of tokenizers, and that of ranks.

    What each imports takes as long as what this one does, and all go on at once.
    """
    if not words or {"--help", "-h"} & set(words):
        return
    if any(word in ("-p", "--prompt") or word.startswith("--prompt=") for word in words[1:]):
        from ..tokenizer.process import PROCESS

        PROCESS.start()
    ray = any(word in ("ray", "--launcher=ray") or "--ray-address" in word for word in words)
    slow = "torch" not in sys.modules
    if slow and words[0] in STARTS_RANKS and not ray and "RAY_ADDRESS" not in os.environ:
        from ...runtime.ranks.server import start_early

        start_early()


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
