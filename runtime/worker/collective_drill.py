"""The collectives of a rank, with whole numbers at every sum and gather of the model.

Whole numbers below 2^24 add up exactly in float32 in any order, so every implementation has one
right answer, and every rank knows it: it draws the numbers of all ranks itself. A copy test proves
nothing: results begin as NaN, and numbers are new in every call.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from ...shard.plan.atoms import complete_subtrees
from ...shard.plan.plan import ShardPlan
from ..forward.decoder import Decoder

ROWS = 3
LARGEST = 999


def drill(decoder: Decoder, plan: ShardPlan, rank: int) -> dict[str, Any]:
    """Call every collective of a forward pass once; return what was wrong and how long they took.

    `wrong` has a record a site: how many elements of `of` were wrong, the first of them, and what
    the result looks like ("stale", "without rank 2", "untouched", "2 x the bias").
    """
    wrong: list[dict[str, Any]] = []
    times: list[float] = []
    before: torch.Tensor | None = None
    for number, (site, bias) in enumerate(_sums(decoder)):
        parts = [_nodes(plan, other, decoder, number) for other in range(plan.degree)]
        wanted = torch.stack([part.sum(0) for part in parts]).sum(0)
        out = torch.full_like(wanted, float("nan"))
        started = time.perf_counter()
        decoder.collectives.all_reduce(parts[rank].clone(), out, site)
        times.append(time.perf_counter() - started)
        if not torch.equal(out, wanted):
            wrong.append(_describe(site, out, wanted, before, parts, bias))
        before = wanted
    for number, site in enumerate(("embed_tokens.out", "lm_head.out")):
        pieces = torch.stack([_bytes(other, number) for other in range(plan.degree)])
        out = torch.zeros_like(pieces)
        decoder.collectives.all_gather(pieces[rank].clone(), out, site)
        if not torch.equal(out, pieces):
            wrong.append(_describe(site, out.float(), pieces.float(), None, [], None))
    return {
        "wrong": wrong,
        "sums": len(times),
        "median_us": round(statistics.median(times) * 1e6, 1),
        "slowest_us": round(max(times) * 1e6, 1),
    }


def _sums(decoder: Decoder) -> list[tuple[str, torch.Tensor | None]]:
    """The sums of the model by site, each with the bias that belongs behind it."""
    return [
        (f"layers.{layer}.{op}.out", weights.biases[name])
        for layer, weights in enumerate(decoder.weights.layers)
        for name, op in (("o", "self_attn.o_proj"), ("down", "mlp.down_proj"))
    ]


def _nodes(plan: ShardPlan, rank: int, decoder: Decoder, number: int) -> torch.Tensor:
    """A rank's summed subtrees float32 [nodes, ROWS, hidden] of one call."""
    generator = torch.Generator().manual_seed(1000 * number + rank)
    shape = (
        len(complete_subtrees(plan.atoms, plan.owned(rank))),
        ROWS,
        decoder.spec.hidden_size,
    )
    return torch.randint(-LARGEST, LARGEST, shape, generator=generator).float()


def _bytes(rank: int, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * number + rank)
    return torch.randint(1, 255, (ROWS, 64), generator=generator, dtype=torch.uint8)


def _describe(
    site: str,
    out: torch.Tensor,
    wanted: torch.Tensor,
    before: torch.Tensor | None,
    parts: list[torch.Tensor],
    bias: torch.Tensor | None,
) -> dict[str, Any]:
    bad = out != wanted
    first = int(bad.flatten().nonzero()[0])
    return {
        "site": site,
        "wrong": int(bad.sum()),
        "of": wanted.numel(),
        "first": first,
        "got": float(out.flatten()[first]),
        "wanted": float(wanted.flatten()[first]),
        "looks": _looks(out, wanted, bad, before, parts, bias),
    }


def _looks(
    out: torch.Tensor,
    wanted: torch.Tensor,
    bad: torch.Tensor,
    before: torch.Tensor | None,
    parts: list[torch.Tensor],
    bias: torch.Tensor | None,
) -> str:
    if bool(out[bad].isnan().all()):
        return "untouched"
    if before is not None and torch.equal(out[bad], before[bad]):
        return "stale"
    for rank, part in enumerate(parts):
        if torch.equal(out[bad], (wanted - part.sum(0))[bad]):
            return f"without rank {rank}"
    if bias is not None:
        excess = out - wanted
        times = float((excess * bias).sum() / (bias.square().sum() * len(out)))
        close = torch.allclose(excess, (times * bias).expand_as(excess), rtol=1e-2, atol=1e-2)
        if abs(times) > 0.5 and close:
            return f"{times:.0f} x the bias"
    return "wrong"
