"""Ranks on several hosts: which of them share one, and the subtrees that a host adds up alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from .atoms import complete_subtrees
from .plan import ShardPlan


def consecutive(names: Sequence[str]) -> tuple[range, ...]:
    """The runs of neighbouring ranks whose hosts have the same name; `names` has one of each rank.

    >>> consecutive(["a", "a", "b"])
    (range(0, 2), range(2, 3))
    """
    runs = (list(run) for _, run in groupby(range(len(names)), key=names.__getitem__))
    return tuple(range(run[0], run[-1] + 1) for run in runs)


def owned_together(plan: ShardPlan, ranks: range) -> range:
    """The consecutive atoms that a run of ranks owns."""
    return range(plan.owned(ranks[0]).start, plan.owned(ranks[-1]).stop)


def host_nodes(plan: ShardPlan, hosts: Sequence[range]) -> list[list[tuple[int, int]]]:
    """The complete subtrees of each host: what no host owns alone is added behind them.

    With 8 atoms and hosts of 2 and 1 ranks, which own atoms 0 to 5 and 6 to 7: [(0, 4), (4, 2)] and
    [(6, 2)].
    """
    return [complete_subtrees(plan.atoms, owned_together(plan, ranks)) for ranks in hosts]


def described(hosts: Sequence[range]) -> str:
    """As in "2 hosts (2 + 1 ranks)"."""
    return f"{len(hosts)} hosts ({' + '.join(str(len(ranks)) for ranks in hosts)} ranks)"
