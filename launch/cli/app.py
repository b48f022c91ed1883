"""The subcommands of `isobit`."""

from __future__ import annotations

from importlib import import_module

import typer

from .version import root

COMMANDS = {
    "plan": ("plan.command", "Show how a model is cut, and what fits."),
    "inspect": ("inspect", "Read a checkpoint once and list everything that is wrong with it."),
    "quantize": (
        "quantize.command",
        "Quantize the weights of a model, to nearest or by how they act on a text; say what is "
        "lost.",
    ),
    "pad": ("pad", "Write a copy with a padded intermediate dimension, in the same format."),
    "generate": ("generate", "Generate text with a model cut over a number of ranks."),
    "verify": (
        "verify",
        "Run one batch at several tensor-parallel sizes and compare every bit.",
    ),
    "evaluate": ("evaluate.command", "Score text with a model and its reference."),
    "doctor": ("doctor.command", "Find out why the output is wrong."),
    "trace": ("trace", "Write what a run computes at chosen sites: digests, statistics, values."),
    "compare": ("compare", "Align two traces and name the first site where they part."),
}
"""By name, the module that has a function of that name, and what it does in one sentence."""
GROUPS = {
    "bench": ("bench.group", "Measure how fast kernels and models run here."),
    "cluster": ("cluster.group", "Several hosts: check them, and bring them up."),
    "gpu": ("gpu", "The GPUs of this machine: check them."),
}
"""By name, the module that has an app of that name, and what it is for."""

# Recent versions of typer carry their own click; the base of BadParameter is right in all of them.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # pyright: ignore


def make_app(asked: str | None = None) -> typer.Typer:
    """The command line, whole; with a word, that command alone, the others as names with a line.

    A list of commands is shown without what they import, which takes seconds.
    """
    app = typer.Typer(
        name="isobit",
        help="Tensor-parallel runtime for quantized language models: the same bits at every "
        "tensor-parallel size.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for name, (module, line) in (COMMANDS | GROUPS).items():
        if asked not in (None, name):
            app.command(name, help=line)(_named)
            continue
        found = getattr(import_module(f"isobit.launch.cli.{module}"), name)
        if name in COMMANDS:
            app.command()(found)
        else:
            app.add_typer(found)
    return app


def _named() -> None:
    """Stands for a command that was not asked for, and so is never called."""
