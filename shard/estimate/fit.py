"""What fits into the memory of the devices: contexts, sequences, degrees and layouts compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from isobit.errors import InputError

from ...kernels.step.kv_cache import PAGE
from ..plan.plan import Layout, PlanSettings, ShardPlan, make_plan
from .memory import MemoryModel, RankMemory

GIB = 1 << 30
LAYOUTS: tuple[Layout, ...] = ("pad", "ragged")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Memory of the devices in GiB, one value for all or one per rank in their order.

    `utilization` is the share of it that isobit may use.
    """

    gib: tuple[float, ...]
    utilization: float

    def limits(self, degree: int) -> tuple[int, ...] | None:
        """Bytes that each of `degree` ranks may use; None when there are more ranks than values."""
        if 1 < len(self.gib) < degree:
            return None
        gib = self.gib * degree if len(self.gib) == 1 else self.gib[:degree]
        return tuple(math.floor(each * GIB * self.utilization) for each in gib)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether one sequence of `length` tokens fits, and what else would.

    `context`: the longest single sequence, in tokens. `sequences`: how many of `length` fit at
    once. `short_by`: bytes that `rank`, the tightest, lacks for one; 0 or less when it fits.
    """

    length: int
    context: int
    sequences: int
    rank: int
    short_by: int

    @property
    def fits(self) -> bool:
        return self.short_by <= 0


def fit(ranks: Sequence[RankMemory], limits: Sequence[int], length: int, most: int) -> Fit:
    """Compare ranks with the bytes that each may use; `most` is the model's longest context."""
    short = [r.total(length) - limit for r, limit in zip(ranks, limits, strict=True)]
    tightest = max(range(len(short)), key=short.__getitem__)

    def all_hold(tokens: int, sequences: int) -> bool:
        pairs = zip(ranks, limits, strict=True)
        return all(rank.total(tokens, sequences) <= limit for rank, limit in pairs)

    # A context of p pages; the last page may reach beyond the model's positions.
    pages = _largest(-(-most // PAGE), lambda p: all_hold(p * PAGE, 1))
    room = max(limits) // min(r.kv(length) for r in ranks if r.kv_per_token)
    return Fit(
        length=length,
        context=min(pages * PAGE, most),
        sequences=_largest(room, lambda n: all_hold(length, n)),
        rank=tightest,
        short_by=short[tightest],
    )


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to cut the model: a degree and a layout, its fullest rank, and what fits.

    Bytes are those of the fullest rank. `balance` is its weights over the mean. `idle_ranks` own no
    attention head. `needed` is what the fullest rank takes with one sequence. `fit` is None where
    no memory was given; `why_not` says why there is no plan at all, and the rest is then 0.
    """

    degree: int
    layout: Layout
    why_not: str | None = None
    intermediate: int = 0
    weights: int = 0
    padding: float = 0.0
    kv_per_token: int = 0
    balance: float = 0.0
    idle_ranks: int = 0
    needed: int = 0
    fit: Fit | None = None


def padding_share(ranks: Sequence[RankMemory]) -> float:
    """Bytes of padding over the bytes that would be there without: 0.05 is five percent more."""
    true = sum(rank.true_weights for rank in ranks)
    return sum(rank.weights.total for rank in ranks) / true - 1 if true else 0.0


def compare(
    model: MemoryModel,
    settings: PlanSettings,
    budget: Budget | None,
    length: int,
    tensors_say: int | None,
) -> list[Option]:
    """Every degree from 1 to the number of atoms in both layouts; see make_plan, fit, Option."""
    options = []
    for layout in LAYOUTS:
        for degree in range(1, settings.atoms + 1):
            try:
                changed = replace(settings, degree=degree, layout=layout)
                plan = make_plan(model.spec, changed, tensors_say)
            except InputError as error:
                why_not = f"{error.code} {error.message}"
                options.append(Option(degree=degree, layout=layout, why_not=why_not))
                continue
            limits = None if budget is None else budget.limits(degree)
            options.append(_option(model, plan, limits, length))
    return options


def _option(
    model: MemoryModel, plan: ShardPlan, limits: Sequence[int] | None, length: int
) -> Option:
    degree = plan.degree
    ranks = model.ranks(plan)
    weights = [rank.weights.total for rank in ranks]
    return Option(
        degree=degree,
        layout=plan.layout,
        intermediate=plan.intermediate.padded,
        weights=max(weights),
        padding=padding_share(ranks),
        kv_per_token=max(rank.kv_per_token for rank in ranks),
        balance=max(weights) * degree / sum(weights),
        idle_ranks=sum(not plan.heads.slice(plan.owned(rank)).size for rank in range(degree)),
        needed=max(rank.total(length) for rank in ranks),
        fit=None if limits is None else fit(ranks, limits, length, model.spec.max_positions),
    )


def ways_out(options: Sequence[Option], settings: PlanSettings) -> list[Option]:
    """What would fit where the chosen one does not: the nearest degree, and the other layout."""
    fitting = [o for o in options if o.fit is not None and o.fit.fits]
    same = [o for o in fitting if o.layout == settings.layout]
    other = [o for o in fitting if o.layout != settings.layout]
    ways = sorted(same, key=lambda o: (abs(o.degree - settings.degree), o.degree))[:1]
    nearer = min((o.degree for o in ways), default=settings.atoms + 1)
    return ways + [o for o in sorted(other, key=lambda o: o.degree) if o.degree < nearer][:1]


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `most` that holds, where every smaller one does; 0 when none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
