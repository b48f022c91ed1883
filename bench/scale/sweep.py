"""Every model on every cluster with every number of cards: plans first, then times."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache, cached_property

from isobit.errors import InputError
from isobit.runtime.settings.engine import EngineSettings
from isobit.shard.estimate.fit import Fit, fit, padding_share
from isobit.shard.estimate.memory import MemoryModel, RankMemory, memory_model
from isobit.shard.estimate.traffic import Traffic, step_traffic
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.atoms import complete_subtrees
from isobit.shard.plan.plan import Layout, PlanSettings, ShardPlan, make_plan

from ..launches import Launches, decode_step, launches, prefill_step
from ..shape import SHAPE
from .collective_time import Wires
from .machines import Card, Cluster, Machines
from .models import Model
from .step_time import RankWork, Step, StepTime, Workload, rank_work, step_time

GIB = 1 << 30
DEFAULT_ATOMS = PlanSettings().atoms
DEGREES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CONTEXT = 1024
WORKLOADS = (
    Workload(name="decode 1", batch=1, context=CONTEXT),
    Workload(name="decode 16", batch=16, context=CONTEXT),
    Workload(name="decode 64", batch=64, context=CONTEXT),
    Workload(name="prefill 512", batch=1, context=512, prefill=True),
    Workload(name="prefill 2048", batch=1, context=2048, prefill=True),
)


def atoms_for(degree: int) -> int:
    """The default number of atoms, or the least power of two that gives every rank one."""
    return max(DEFAULT_ATOMS, 1 << (degree - 1).bit_length())


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A model cut for a number of ranks, by the functions behind `isobit plan`."""

    model: Model
    memory: MemoryModel
    plan: ShardPlan
    ranks: list[RankMemory]
    traffic: Traffic

    @cached_property
    def works(self) -> list[RankWork]:
        return [rank_work(self.memory, self.plan, rank) for rank in self.ranks]

    @property
    def padding(self) -> float:
        return padding_share(self.ranks)

    @property
    def balance(self) -> float:
        """Weights of the fullest rank over the mean."""
        weights = [rank.weights.total for rank in self.ranks]
        return max(weights) * len(weights) / sum(weights)

    @property
    def idle(self) -> int:
        """Ranks without an attention head."""
        plan = self.plan
        return sum(not plan.heads.slice(plan.owned(rank)).size for rank in range(plan.degree))

    def launches(self, steps: list[Step], workload: Workload) -> int:
        """Kernels that these steps of a workload start on the rank that starts most."""
        layers = self.model.spec.layers
        return sum(
            _launches(self.plan.atoms, self.plan.degree, s, workload).of(layers) for s in steps
        )

    def needed(self, context: int, sequences: int) -> int:
        """Bytes that the fullest rank takes."""
        return max(rank.total(context, sequences) for rank in self.ranks)

    def fit(self, card: Card, share: float, context: int) -> Fit:
        """What fits on cards of this kind, as `isobit plan --gpu-memory` says."""
        limits = [int(card.gib * GIB * share)] * self.plan.degree
        return fit(self.ranks, limits, context, self.model.spec.max_positions)


@cache
def planned(model: Model, degree: int, layout: Layout = "pad", atoms: int | None = None) -> Planned:
    """Plan a model, over `atoms_for(degree)` atoms where no number is given.

    Raises what make_plan raises for this degree, these atoms, this group size.
    """
    settings = PlanSettings(
        degree=degree, atoms=atoms_for(degree) if atoms is None else atoms, layout=layout
    )
    plan = make_plan(model.spec, settings)
    memory = _memory(model)
    return Planned(
        model=model,
        memory=memory,
        plan=plan,
        ranks=memory.ranks(plan),
        traffic=step_traffic(model.spec, plan, model.spec.dtype),
    )


@cache
def _launches(atoms: int, degree: int, step: Step, workload: Workload) -> Launches:
    """Counted on the rank that has most nodes of the tree. A shape with a head an atom stands for
    all: how many kernels start depends on nothing else of it."""
    spec = dataclasses.replace(
        spec_from_config({**SHAPE, "tie_word_embeddings": False}, None),
        heads=atoms,
        kv_heads=atoms,
        intermediate_size=128 * atoms,
    )
    plan = make_plan(spec, PlanSettings(degree=degree, atoms=atoms))
    rank = max(range(degree), key=lambda each: len(complete_subtrees(atoms, plan.owned(each))))
    if workload.prefill:
        return launches(spec, plan, rank, prefill_step(step.rows, sampled=bool(step.sampled)))
    return launches(spec, plan, rank, decode_step(step.rows, workload.context))


@cache
def _memory(model: Model) -> MemoryModel:
    return memory_model(model.spec, model.spec.dtype, EngineSettings().max_step_rows)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One workload of one model on one cluster. `needed`: bytes of the fullest rank."""

    model: str
    cluster: str
    degree: int
    workload: Workload
    planned: Planned
    time: StepTime
    needed: int
    fits: bool

    @property
    def tokens_per_s(self) -> float:
        """Tokens that come out (decode) or go in (prefill) a second."""
        tokens = self.workload.context if self.workload.prefill else self.workload.batch
        return tokens / self.time.total


@dataclass(frozen=True, kw_only=True)
class Impossible:
    """A number of cards for which the planner has no plan, and what it says."""

    model: str
    degree: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Rows by model, cluster, degree and workload, in this order, and what cannot be."""

    models: list[str]
    rows: list[Row]
    impossible: list[Impossible]


def wires_of(cluster: Cluster, machines: Machines, degree: int) -> Wires:
    """The links between `degree` ranks of a cluster."""
    return Wires(
        degree=degree,
        box=cluster.box,
        inside=machines.link(cluster.inside),
        between=machines.link(cluster.between),
        assumed=machines.assumptions,
    )


def sweep(
    models: list[Model],
    machines: Machines,
    degrees: tuple[int, ...],
    layout: Layout = "pad",
    atoms: int | None = None,
) -> Sweep:
    """Everything for these models and numbers of cards; see planned."""
    rows: list[Row] = []
    impossible: list[Impossible] = []
    for model in models:
        cuts: list[Planned] = []
        for degree in degrees:
            try:
                cuts.append(planned(model, degree, layout, atoms))
            except InputError as error:
                impossible.append(
                    Impossible(
                        model=model.name, degree=degree, code=error.code, message=error.message
                    )
                )
        for cluster in machines.clusters:
            for cut in cuts:
                rows += _rows(cluster, machines, cut)
    return Sweep(models=[model.name for model in models], rows=rows, impossible=impossible)


def _rows(cluster: Cluster, machines: Machines, cut: Planned) -> list[Row]:
    card, degree = machines.card(cluster.card), cut.plan.degree
    limit = card.gib * GIB * machines.assumptions.memory_share
    rows = []
    for workload in WORKLOADS:
        needed = cut.needed(workload.context, workload.batch)
        steps = workload.steps(cut.memory.step_rows)
        time = step_time(
            cut.works,
            cut.traffic,
            card,
            wires_of(cluster, machines, degree),
            steps,
            cut.launches(steps, workload),
        )
        rows.append(
            Row(
                model=cut.model.name,
                cluster=cluster.name,
                degree=degree,
                workload=workload,
                planned=cut,
                time=time,
                needed=needed,
                fits=needed <= limit,
            )
        )
    return rows
