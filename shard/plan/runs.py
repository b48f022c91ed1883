"""Runs: stretches of input features that share one scale, cut so that none crosses an atom."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Runs:
    """How a rank's input features are laid out for a kernel.

    `spans` are (begin, end) in the laid-out order, `segments` the ends of the atoms in runs.
    `groups` has the group of each run, -1 for padding. `order` int64 [k] names the feature at each
    laid-out position, None where the order is unchanged.
    """

    spans: list[tuple[int, int]]
    segments: list[int]
    groups: list[int]
    order: torch.Tensor | None


def make_runs(ends: list[int], groups: torch.Tensor, width: int) -> Runs:
    """Cut atoms into runs of one group each.

    `ends` are the ends of a rank's atoms in its features; `groups` int64 [true] is the group of
    each feature that exists, those after it are padding, cut every `width`. Within an atom features
    are put in the order of their groups (act-order leaves them shuffled); a group that two atoms
    share becomes a run in each, at every degree the same ones.
    """
    size, true = ends[-1], len(groups)
    atoms = torch.repeat_interleave(
        torch.arange(len(ends) - 1), torch.tensor(ends, dtype=torch.int64).diff()
    )
    most = int(groups.max()) + 1 if true else 0
    padding = most + torch.arange(size - true) // width
    ids = atoms * (most + size + 1) + torch.cat((groups, padding))
    order = None
    if bool((ids.diff() < 0).any()):
        ids, order = ids.sort(stable=True)
        atoms = atoms[order]
    _, lengths = torch.unique_consecutive(ids, return_counts=True)
    stops = lengths.cumsum(0)
    starts = (stops - lengths).tolist()
    owners = atoms[starts] if starts else atoms[:0]
    counts = torch.bincount(owners, minlength=len(ends) - 1)
    first = order[starts].tolist() if order is not None else starts
    return Runs(
        spans=list(zip(starts, stops.tolist(), strict=True)),
        segments=[0, *counts.cumsum(0).tolist()],
        groups=[int(groups[f]) if f < true else -1 for f in first],
        order=order,
    )
