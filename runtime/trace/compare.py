"""Two traces side by side: the first site where they part, and how far apart each site is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isobit.errors import InputError

from ...shard.model.spec import DTYPES
from .alignment import common_tokens, cover, row_blocks, same_cut, strips
from .distance import Distance, Place
from .folder import Trace
from .index import TracedSite, TraceIndex

ROUNDINGS = 8.0
"""Roundings of the coarser dtype that a layer may add, as a root mean square."""
SOFTWARE = ("isobit", "torch", "instruction set", "config.json")
OnSite = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class SiteComparison:
    """One site. `how` is "values" or "digests"; digests give no numbers.

    `within` says whether it is as it should be: equal in bits where those are promised, else
    within the tolerance in every step. `first_bad_step` is the first step of a where it is not.
    """

    site: str
    how: str
    bit_equal: bool
    within: bool
    compared: int
    max_abs: float | None
    relative_error: float | None
    sqnr_db: float | None
    lost: int
    first: Place | None
    worst: Place | None
    first_bad_step: int | None


@dataclass(frozen=True, kw_only=True)
class TraceComparison:
    """All sites in forward order. `tolerance` is None where equal bits are promised; else
    `why_not` says why they are not. `parted` is the first site that is not as it should be."""

    why_not: list[str]
    tolerance: float | None
    sites: list[SiteComparison]
    parted: SiteComparison | None
    tokens_part: dict[int, int]
    not_compared: dict[str, str]

    @property
    def verdict(self) -> str:
        """equal, within-tolerance or different."""
        if self.parted is not None:
            return "different"
        return "equal" if all(site.bit_equal for site in self.sites) else "within-tolerance"


def why_no_bits(a: TraceIndex, b: TraceIndex) -> list[str]:
    """Why equal bits are not promised; empty when they are."""
    reasons = []
    if "transformers" in (a.source, b.source):
        reasons.append("transformers adds in another order")
    elif not same_cut(a, b):
        reasons.append("the plans cut dimensions into other atoms")
    if a.dtype != b.dtype:
        reasons.append(f"dtype {a.dtype} and {b.dtype}")
    if a.source == b.source:
        reasons += [
            f"{name}: {a.software.get(name)} and {b.software.get(name)}"
            for name in SOFTWARE
            if a.software.get(name) != b.software.get(name)
        ]
    outside = [x.all_reduce for x in (a, b) if x.source == "isobit" and not x.invariant]
    reasons += [f"all-reduce {name} is not invariant" for name in dict.fromkeys(outside)]
    return reasons


def default_tolerance(a: TraceIndex, b: TraceIndex) -> float:
    """What rounding explains: (8 u + u32 * sqrt(K)) * sqrt(layers).

    u is half the spacing at 1 of the coarser dtype, u32 that of float32, in which products of K
    terms are added up, K being intermediate_size. Each layer adds errors of its own, and
    independent errors add up as squares.
    """
    known = [torch.finfo(DTYPES[index.dtype]).eps / 2 for index in (a, b) if index.dtype in DTYPES]
    single = torch.finfo(torch.float32).eps / 2
    layers, terms = (a.shape.get(name, 1) for name in ("layers", "intermediate_size"))
    return (ROUNDINGS * max(known, default=single) + single * math.sqrt(terms)) * math.sqrt(layers)


def compare_traces(
    a: Trace,
    b: Trace,
    *,
    rank_a: int | None = None,
    rank_b: int | None = None,
    tolerance: float | None = None,
    on_site: OnSite = lambda site, of: None,
) -> TraceComparison:
    """Compare b with a, the reference; with a rank given only what that rank recorded.

    `tolerance` is the greatest relative error of a site in a step, where equal bits are not
    promised; a number given asks for it even where they are. Raises InputError E-TRACE-MODEL,
    E-TRACE-PROMPT, E-TRACE-RANK, E-TRACE-APART when there is nothing to compare.
    """
    _check_ranks(a, rank_a)
    _check_ranks(b, rank_b)
    shared = common_tokens(a.index, b.index)
    why_not = why_no_bits(a.index, b.index)
    if tolerance is None and why_not:
        tolerance = default_tolerance(a.index, b.index)
    names = {site.name for site in b.index.sites}
    both = [site for site in a.index.sites if site.name in names]
    skipped = {
        site.name: f"only in {which}"
        for which, trace, other in (("a", a, b), ("b", b, a))
        for site in trace.index.sites
        if other.site(site.name) is None
    }
    found: list[SiteComparison] = []
    for site in both:
        on_site(site.name, len(both))
        outcome = _site(a, b, site, shared, (rank_a, rank_b), tolerance)
        if isinstance(outcome, str):
            skipped[site.name] = outcome
        else:
            found.append(outcome)
    if not found:
        raise InputError(
            "E-TRACE-APART",
            "the traces have no site, token and column in common:\n  "
            + "\n  ".join(f"{name}: {why}" for name, why in list(skipped.items())[:20]),
        )
    bad = [site for site in found if site.first_bad_step is not None]
    return TraceComparison(
        why_not=why_not,
        tolerance=tolerance,
        sites=found,
        parted=min(bad, key=lambda site: site.first_bad_step or 0, default=None),
        tokens_part={
            request: count
            for request, count in enumerate(shared)
            if count < min(len(a.index.tokens[request]), len(b.index.tokens[request]))
        },
        not_compared=skipped,
    )


def _check_ranks(trace: Trace, rank: int | None) -> None:
    if rank is not None and not 0 <= rank < trace.index.degree:
        raise InputError(
            "E-TRACE-RANK", f"{trace.folder}: rank {rank}; it has {trace.index.degree} ranks"
        )


def _site(
    a: Trace,
    b: Trace,
    site: TracedSite,
    shared: list[int],
    ranks: tuple[int | None, int | None],
    tolerance: float | None,
) -> SiteComparison | str:
    """The comparison of a site, or why there is none."""
    other = b.site(site.name)
    assert other is not None
    if site.name.endswith(".partial") and not same_cut(a.index, b.index):
        return "the plans cut it into other atoms"
    moved = a.index.orders.get(site.name) != b.index.orders.get(site.name)
    distance = Distance()
    for block in row_blocks(a, b, (site, other), shared):
        ours = strips(a, site, block.step_a, block.places_a, ranks[0], moved)
        theirs = strips(b, other, block.step_b, block.places_b, ranks[1], moved)
        base = cover(ours)
        for part in base:
            for strip in theirs:
                distance.add(block, part, strip)
            for strip in ours:
                distance.add(block, part, strip, "a")
    if not distance.compared:
        return _digests(a, b, site, ranks, tolerance)
    sums = distance.total()
    wrong = [
        step
        for step, each in sorted(distance.sums.items())
        if tolerance is not None and not each.relative_error <= tolerance
    ]
    if tolerance is None and distance.first is not None:
        wrong = [distance.first.step]
    return SiteComparison(
        site=site.name,
        how="values",
        bit_equal=distance.bit_equal,
        within=not wrong,
        compared=distance.compared,
        max_abs=distance.max_abs,
        relative_error=sums.relative_error,
        sqnr_db=10 * math.log10(sums.reference / sums.difference)
        if sums.difference and sums.reference and not sums.lost
        else None,
        lost=sums.lost,
        first=distance.first,
        worst=distance.worst,
        first_bad_step=wrong[0] if wrong else None,
    )


def _digests(
    a: Trace,
    b: Trace,
    site: TracedSite,
    ranks: tuple[int | None, int | None],
    tolerance: float | None,
) -> SiteComparison | str:
    """Compare digests of parts, where both traces cut their prompts into the same steps."""
    if tolerance is not None:
        return "there are no values in both, and digests know no tolerance"
    known: dict[tuple[int, int, int], str] = {}
    first: Place | None = None
    compared = 0
    for step in range(min(len(a.index.steps), len(b.index.steps))):
        rows = a.index.rows(step, site.sampled)
        if a.index.steps[step] != b.index.steps[step]:
            break
        for trace, which, rank in ((a, "a", ranks[0]), (b, "b", ranks[1])):
            for piece in trace.pieces.get((site.name, step), ()):
                if rank not in (None, piece.rank):
                    continue
                for part in piece.parts:
                    key = (step, part.begin, part.end)
                    if not part.digest or (which == "b" and key not in known):
                        continue
                    compared += which == "b"
                    if known.setdefault(key, part.digest) != part.digest and first is None:
                        first = Place(
                            step=step,
                            request=rows[0][0],
                            position=rows[0][1],
                            column=part.begin,
                            part=part.part,
                            rank=piece.rank,
                            trace=which,
                            a=math.nan,
                            b=math.nan,
                        )
    if not compared:
        return "no values or digests of the same columns and tokens in both"
    return SiteComparison(
        site=site.name,
        how="digests",
        bit_equal=first is None,
        within=first is None,
        compared=compared,
        max_abs=None,
        relative_error=None,
        sqnr_db=None,
        lost=0,
        first=first,
        worst=None,
        first_bad_step=None if first is None else first.step,
    )
