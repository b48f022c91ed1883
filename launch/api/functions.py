"""`isobit.plan`, `isobit.verify` and `isobit.inspect`: what the commands do, as functions."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.engine.preflight import prepare
from ...runtime.settings.engine import EngineSettings
from ...runtime.tasks.verify import Verification
from ...runtime.tasks.verify import verify as run_verify
from ...shard.inspect import Report, inspect_folder
from ...shard.plan.plan import Layout, PlanSettings, ShardPlan
from ..models import model_folder
from ..placing import chosen_device, launcher_name, placed


def plan(model: str, *, tensor_parallel_size: int = 1, layout: Layout = "pad") -> ShardPlan:
    """How a model is cut. Raises InputError as `isobit plan` does."""
    settings = PlanSettings(degree=tensor_parallel_size, layout=layout)
    return prepare(model_folder(model, weights=False), EngineSettings(plan=settings))[1]


def inspect(model: str) -> Report:
    """Whether a checkpoint is healthy, every tensor read once. Raises InputError E-MODEL-MISSING
    and E-CKPT-MISSING."""
    return inspect_folder(model_folder(model))


def verify(
    model: str,
    prompts: Sequence[Sequence[int]],
    *,
    tensor_parallel_sizes: Sequence[int] = (1, 2),
    max_tokens: int = 16,
    device: str = "auto",
    launcher: str = "auto",
    ray_address: str | None = None,
) -> Verification:
    """Run prompts of token ids at several tensor-parallel sizes and compare every bit.

    Raises InputError as `isobit verify` does, RankFault when a rank dies.
    """
    name, most = launcher_name(launcher), max(tensor_parallel_sizes)
    settings = EngineSettings(device=chosen_device(device, name, ray_address, most))
    ids = [list(prompt) for prompt in prompts]
    with placed(name, ray_address, most, settings.device) as new_launcher:
        return run_verify(
            model_folder(model), tensor_parallel_sizes, settings, ids, max_tokens, new_launcher
        )
