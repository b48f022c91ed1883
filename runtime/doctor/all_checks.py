"""The checks in their order, the cheapest first."""

from __future__ import annotations

from isobit.findings import Finding

from .checks.checkpoint import check_checkpoint
from .checks.collectives import check_collectives
from .checks.degrees import check_degrees
from .checks.environment import check_environment
from .checks.kernels import check_kernels
from .checks.numbers import check_numbers
from .checks.plan import check_plan
from .checks.reference import check_reference
from .context import Context
from .examine import Check


def _environment(context: Context) -> list[Finding]:
    findings, measured = check_environment(context.case.degree)
    for name, value in measured.items():
        context.measure(name, value)
    return findings


CHECKS = (
    Check(
        name="environment",
        cost="seconds",
        finds=("environment",),
        run=_environment,
    ),
    Check(
        name="checkpoint",
        cost="reads the files once",
        finds=(
            "checkpoint-damaged",
            "config-mismatch",
            "format-mislabelled",
            "not-supported",
            "numeric-overflow",
        ),
        run=check_checkpoint,
    ),
    Check(
        name="plan",
        cost="starts the ranks, and reads the files three times",
        finds=("kernel-fault", "shard-fault", "rank-divergence", "collective-fault"),
        run=check_plan,
    ),
    Check(
        name="collectives",
        cost="seconds, with processes of its own",
        finds=("shard-fault", "collective-fault"),
        run=check_collectives,
    ),
    Check(
        name="kernels",
        cost="a few steps with a reference beside every operation",
        finds=("kernel-fault", "shard-fault", "rank-divergence", "collective-fault"),
        run=check_kernels,
    ),
    Check(
        name="degrees",
        cost="the same steps at tp 1",
        finds=("kernel-fault", "shard-fault", "rank-divergence", "collective-fault"),
        run=check_degrees,
    ),
    Check(
        name="numbers",
        cost="a few steps and longer prompts, with statistics at every site",
        finds=("numeric-overflow",),
        run=check_numbers,
    ),
    Check(
        name="reference",
        cost="the model in plain torch beside its reference, then at two tensor-parallel sizes",
        finds=("quantization-loss",),
        run=check_reference,
    ),
)
