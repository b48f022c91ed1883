"""Everything that `isobit plan` knows about a model and a plan, as one record."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from isobit.errors import InputError

from ..checkpoint.checkpoint import Checkpoint
from ..model.spec import ModelSpec
from ..plan.hosts import consecutive
from ..plan.plan import PlanSettings, ShardPlan
from .fit import Budget, Fit, Option, compare, fit, padding_share, ways_out
from .memory import MemoryModel, RankMemory, memory_model
from .traffic import Traffic, between_hosts, step_traffic

STEPS = {"decode": (1, 1), "prefill": (512, 1)}
"""Steps that the traffic is shown for: name -> (rows, rows that are sampled)."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a user wants to know beside the plan.

    `length` is the context to plan for, in tokens; None takes all that the model has.
    `ranks_per_host` says how the ranks are spread; empty where all of them share one host.
    """

    dtype: str
    step_rows: int
    length: int | None = None
    budget: Budget | None = None
    ranks_per_host: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A plan with its memory, its traffic, and the other degrees and layouts beside it."""

    plan: ShardPlan
    model: MemoryModel
    length: int
    budget: Budget | None
    ranks: list[RankMemory]
    fit: Fit | None
    options: list[Option]
    ways_out: list[Option]
    traffic: Traffic
    hosts: tuple[range, ...]
    host_traffic: list[Traffic]

    @property
    def padding(self) -> float:
        """Bytes of padding over the bytes without it, of all ranks together."""
        return padding_share(self.ranks)

    def chosen_degree(self) -> list[Option]:
        """Both layouts at the degree of the plan, "pad" first."""
        return [o for o in self.options if o.degree == self.plan.degree]

    def chosen_layout(self) -> list[Option]:
        """Every degree in the layout of the plan."""
        return [o for o in self.options if o.layout == self.plan.layout]

    def report(self) -> dict[str, Any]:
        """The plan's report with everything else beside it, as `isobit plan --json` prints it."""
        spec = self.model.spec
        return {
            **self.plan.report(),
            "memory": {
                "dtype": self.model.dtype,
                "exact": self.model.exact,
                "max_model_len": self.length,
                "max_step_rows": self.model.step_rows,
                "kv_heads": spec.kv_heads,
                "tied_embeddings": spec.tied_embeddings,
                "padding_percent": _percent(self.padding),
                "ranks": [self._rank(rank) for rank in self.ranks],
            },
            "rotary": spec.rotary.report(),
            "fit": self._fit(),
            "degrees": [_option(option) for option in self.chosen_layout()],
            "layouts": [_option(option) for option in self.chosen_degree()],
            "wire": self._wire(),
        }

    def _rank(self, rank: RankMemory) -> dict[str, Any]:
        return {
            "rank": rank.rank,
            **{field.name: getattr(rank.weights, field.name) for field in fields(rank.weights)},
            "weights": rank.weights.total,
            "padding_percent": _percent(rank.padding),
            "kv_heads": list(self.plan.kv_heads(rank.rank)),
            "kv_per_token": rank.kv_per_token,
            "kv": rank.kv(self.length),
            "rotary": rank.rotary,
            "step": rank.step.total(1),
            "total": rank.total(self.length),
        }

    def _fit(self) -> dict[str, Any] | None:
        if self.fit is None or self.budget is None:
            return None
        return {
            "gpu_memory_gib": list(self.budget.gib),
            "gpu_memory_utilization": self.budget.utilization,
            **_fit_fields(self.fit),
            "rank": self.fit.rank,
            "ways_out": [{"tp": o.degree, "layout": o.layout} for o in self.ways_out],
        }

    def _wire(self) -> dict[str, Any]:
        traffic = self.traffic
        return {
            "nodes_per_rank": list(traffic.nodes),
            "messages": [
                {
                    "site": message.site,
                    "per_step": message.count,
                    "dtype": message.dtype,
                    "shape": list(message.shape),
                    **{name: traffic.sent(message, *rows) for name, rows in STEPS.items()},
                }
                for message in traffic.messages
            ],
            **{
                name: {"rows": rows, "sent": traffic.total(rows, sampled)}
                | {"received": traffic.total(rows, sampled)}
                for name, (rows, sampled) in STEPS.items()
            },
            "hosts": [
                {"ranks": list(ranks), "nodes": sent.nodes[0]}
                | {name: {"sent": sent.total(*rows)} for name, rows in STEPS.items()}
                for ranks, sent in zip(self.hosts, self.host_traffic, strict=True)
            ],
        }


def explain(
    spec: ModelSpec,
    plan: ShardPlan,
    question: Question,
    checkpoint: Checkpoint | None = None,
    tensors_say: int | None = None,
) -> Explanation:
    """Work out everything about a plan, with the headers of the checkpoint where there is one.

    `tensors_say` is the intermediate size found there, as for make_plan. Raises InputError
    E-PLAN-LENGTH for a length that the model does not have, E-PLAN-MEMORY when the memory of some
    ranks is not given, E-PLAN-HOSTS when the hosts do not hold all ranks.
    """
    length = spec.max_positions if question.length is None else question.length
    budget = question.budget
    if not 1 <= length <= spec.max_positions:
        raise InputError(
            "E-PLAN-LENGTH",
            f"--max-model-len {length}: the model has positions for 1 to {spec.max_positions} "
            "tokens (max_position_embeddings in config.json)",
        )
    limits = None if budget is None else budget.limits(plan.degree)
    if budget is not None and limits is None:
        raise InputError(
            "E-PLAN-MEMORY",
            f"--gpu-memory names {len(budget.gib)} devices and there are {plan.degree} ranks. Give "
            f"one value for all, or {plan.degree} values between commas",
        )
    counts = question.ranks_per_host
    if counts and (min(counts) < 1 or sum(counts) != plan.degree):
        raise InputError(
            "E-PLAN-HOSTS",
            f"--ranks-per-host {','.join(map(str, counts))}: expected numbers above 0 that add up "
            f"to {plan.degree}, the tensor-parallel size",
        )
    hosts = consecutive([str(host) for host, count in enumerate(counts) for _ in range(count)])
    entries = None if checkpoint is None else checkpoint.entries
    model = memory_model(spec, question.dtype, question.step_rows, entries)
    settings = PlanSettings(degree=plan.degree, atoms=plan.atoms, layout=plan.layout)
    options = compare(model, settings, budget, length, tensors_say)
    ranks = model.ranks(plan)
    return Explanation(
        plan=plan,
        model=model,
        length=length,
        budget=budget,
        ranks=ranks,
        fit=None if limits is None else fit(ranks, limits, length, spec.max_positions),
        options=options,
        ways_out=ways_out(options, settings),
        traffic=step_traffic(spec, plan, question.dtype),
        hosts=hosts,
        host_traffic=between_hosts(spec, plan, question.dtype, hosts),
    )


def _option(option: Option) -> dict[str, Any]:
    names = {"tp": option.degree, "layout": option.layout}
    if option.why_not is not None:
        return {**names, "works": False, "why_not": option.why_not}
    return {
        **names,
        "works": True,
        "intermediate": option.intermediate,
        "weights": option.weights,
        "padding_percent": _percent(option.padding),
        "kv_per_token": option.kv_per_token,
        "balance": round(option.balance, 4),
        "idle_ranks": option.idle_ranks,
        "total": option.needed,
        "fit": None if option.fit is None else _fit_fields(option.fit),
    }


def _fit_fields(found: Fit) -> dict[str, Any]:
    names = ("fits", "length", "context", "sequences", "short_by")
    return {name: getattr(found, name) for name in names}


def _percent(share: float) -> float:
    return round(100 * share, 3)
