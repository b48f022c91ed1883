"""What every rank will hold, from the plan and the headers of the files, for reports."""

from __future__ import annotations

from ...shard.checkpoint.checkpoint import open_checkpoint
from ...shard.estimate.memory import memory_model
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..settings.engine import run_dtype
from .case import Case


def planned_memory(case: Case, spec: ModelSpec, plan: ShardPlan) -> list[dict[str, int]]:
    """Bytes of every rank, as `isobit plan` counts them: weights (`padding` is part of them), what
    a step takes, and the KV cache of one sequence as long as the model allows (`context` tokens).

    Raises InputError as open_checkpoint does.
    """
    model = memory_model(
        spec,
        str(run_dtype(spec, case.engine.dtype)).removeprefix("torch."),
        case.engine.max_step_rows,
        open_checkpoint(case.model).entries,
    )
    return [
        {
            "rank": rank.rank,
            "weights": rank.weights.total,
            "padding": rank.weights.total - rank.true_weights,
            "step": rank.rotary + rank.step.total(len(case.prompts)),
            "kv_cache": rank.kv(spec.max_positions),
            "context": spec.max_positions,
        }
        for rank in model.ranks(plan)
    ]
