"""The subcommands of `isobit`."""

from __future__ import annotations

from importlib import import_module

import typer

from .version import root

COMMANDS = {
    "plan": "isobit.launch.cli.plan.command",
    "inspect": "isobit.launch.cli.inspect",
    "quantize": "isobit.launch.cli.quantize.command",
    "pad": "isobit.launch.cli.pad",
    "generate": "isobit.launch.cli.generate",
    "verify": "isobit.launch.cli.verify",
    "evaluate": "isobit.launch.cli.evaluate.command",
    "doctor": "isobit.launch.cli.doctor.command",
    "trace": "isobit.launch.cli.trace",
    "compare": "isobit.launch.cli.compare",
}
"""By name, the module that has a function of that name."""
GROUPS = {
    "bench": "isobit.launch.cli.bench.group",
    "cluster": "isobit.launch.cli.cluster.group",
    "gpu": "isobit.launch.cli.gpu",
}
"""By name, the module that has an app of that name."""

# Recent versions of typer carry their own click; the base of BadParameter is right in all of them.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # pyright: ignore


def make_app(asked: str | None = None) -> typer.Typer:
    """The command line; with the name of a command, that one alone.

    Every command imports what it needs, and all of them together take a third of a second.
    """
    app = typer.Typer(
        name="isobit",
        help="Tensor-parallel runtime for quantized language models: the same bits at every "
        "degree.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    every = asked not in (*COMMANDS, *GROUPS)
    for name, module in (COMMANDS | GROUPS).items():
        if every or name == asked:
            found = getattr(import_module(module), name)
            if name in COMMANDS:
                app.command()(found)
            else:
                app.add_typer(found)
    return app
