"""The subcommands of `isobit`."""

from __future__ import annotations

import typer

from .bench import bench
from .cluster import cluster
from .compare import compare
from .doctor import doctor
from .evaluate import evaluate
from .generate import generate
from .inspect import inspect
from .pad import pad
from .plan import plan
from .quantize import quantize
from .trace import trace
from .verify import verify
from .version import root

app = typer.Typer(
    name="isobit",
    help="Tensor-parallel runtime for quantized language models: the same bits at every degree.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.callback()(root)
commands = (plan, inspect, quantize, pad, generate, verify, evaluate, doctor, trace, compare)
for command in commands:
    app.command()(command)
app.add_typer(bench)
app.add_typer(cluster)

# Recent versions of typer carry their own click; the base of BadParameter is right in all of them.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # pyright: ignore
