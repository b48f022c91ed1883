"""Entry point: the subcommands, and the one place where errors become messages and statuses."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

import typer

from ...kernels.errors import IsobitError
from .generate import generate
from .output import print_error
from .plan import plan
from .quantize import quantize
from .verify import verify

# Recent versions of typer carry their own click; the base of BadParameter is right in all of them.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # pyright: ignore

app = typer.Typer(
    name="isobit",
    help="Tensor-parallel runtime for quantized language models: the same bits at every degree.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (plan, quantize, generate, verify):
    app.command()(command)


def main() -> None:
    """Run the command line: 0 fine, 1 bad verdict, 2 wrong input or environment, 130 Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _terminated)
    as_json = "--json" in sys.argv[1:]
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except IsobitError as error:
        print_error(error.code, error.message, as_json)
        sys.exit(error.exit_status)
    except UsageError as error:
        print_error("E-USAGE", str(error.format_message()), as_json)  # pyright: ignore
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print_error("E-INTERRUPTED", "stopped; every process was ended", as_json)
        sys.exit(130)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
