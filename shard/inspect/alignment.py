"""Do scales belong to the codes that they stand beside? What the numbers of a file alone can tell.

A quantizer takes the step of a group from the group's own extremes. Where they lie far out the step
is large, and so the codes of that group bunch together: across the output rows the logarithms of a
group's scale and of the spread of its codes are anticorrelated (-0.37 to -0.75 in checkpoints of
GPTQ, AWQ and the absolute maximum). Beside a stranger's scales they have nothing to do with each
other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.safetensors_file import SliceReader
from ..formats import bitsandbytes, quantized_format
from ..formats.awq import NIBBLE_OF_COLUMN
from ..model.spec import ModelSpec
from .quantized import QuantizedModule, quantized_modules

MOST_ROWS = 1024
"""Output rows that are looked at in a weight: more would tell no more."""
FEWEST_ROWS = 64
FEWEST_GROUPS = 2
MOST_ALIGNED = -0.15
"""Weaker than this the own scale does not show."""
LEAST_FOREIGN = -0.45
DEVIATIONS = 5.0
"""At least this strong, and this many standard deviations from chance, another's does."""
WORD = len(NIBBLE_OF_COLUMN)
ORDERS = (tuple(NIBBLE_OF_COLUMN), tuple(NIBBLE_OF_COLUMN.index(i) for i in range(WORD)))
"""How reading mixes up the columns of a word when the order of AWQ's nibbles was ignored."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Correlation of each group's scales with the spread of its own codes, and better matches.

    `own` is the median over groups. `foreign` lists groups whose codes fit the scales of another:
    (group, the other, own correlation, its correlation). `columns` is the correlation under the
    order of columns within a word that fits best, None where the order of the file is it.
    """

    own: float
    foreign: tuple[tuple[int, int, float, float], ...] = ()
    columns: float | None = None


def alignments(
    checkpoint: Checkpoint, spec: ModelSpec
) -> Iterator[tuple[QuantizedModule, Alignment]]:
    """Every quantized weight of a checkpoint that can be loaded, as far as it is large enough."""
    with SliceReader() as reader:
        for module in quantized_modules(spec):
            scheme = module.scheme
            if scheme.format == bitsandbytes.NF4 or scheme.groups(module.k) < FEWEST_GROUPS:
                continue
            rows = slice(0, min(module.n, MOST_ROWS))
            form = quantized_format(scheme.format)
            piece = form.read_slice(
                checkpoint, reader, module.name, scheme, rows, slice(0, module.k)
            )
            orders = ORDERS if scheme.format == "awq" else ()
            found = alignment(_spread(piece.codes, piece.groups), piece.scales.float(), orders)
            if found is not None:
                yield module, found


def _spread(codes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Standard deviations of codes [n, k] within each group, float32 [n, g]."""
    index = groups.long()
    count = torch.bincount(index).clamp(min=1)
    zeros = torch.zeros(len(codes), len(count))
    values = codes.float()
    mean = zeros.index_add(1, index, values) / count
    off = (values - mean[:, index]).square()
    return (zeros.index_add(1, index, off) / count).sqrt()


def alignment(
    spread: torch.Tensor, scales: torch.Tensor, orders: tuple[tuple[int, ...], ...] = ()
) -> Alignment | None:
    """Compare standard deviations of codes [n, g] with scales [n, g], both positive.

    `orders` are permutations of WORD columns to try. None where the weight is too small to tell.
    """
    n, groups = scales.shape
    if n < FEWEST_ROWS or groups < FEWEST_GROUPS:
        return None
    usable = ((scales > 0) & (spread > 0)).all(1)
    if int(usable.sum()) < FEWEST_ROWS:
        return None
    logs = [_residuals(table.double().clamp(min=1e-30).log()) for table in (scales, spread)]
    matrix = _correlations(logs[0][usable], logs[1][usable])
    own = matrix.diagonal()
    best, where = matrix.min(0)
    least = min(LEAST_FOREIGN, -DEVIATIONS / int(usable.sum()) ** 0.5)
    foreign = tuple(
        (group, int(where[group]), float(own[group]), float(best[group]))
        for group in range(groups)
        if float(own[group]) > MOST_ALIGNED and float(best[group]) < least
    )
    return Alignment(
        own=float(own.median()),
        foreign=foreign,
        columns=_columns(logs, float(own.median()), orders),
    )


def _columns(
    logs: list[torch.Tensor], own: float, orders: tuple[tuple[int, ...], ...]
) -> float | None:
    """The correlation under the best order of columns, where it beats that of the file."""
    n = len(logs[0]) // WORD * WORD
    found = []
    for order in orders:
        index = torch.arange(n).view(-1, WORD)[:, list(order)].flatten()
        found.append(float(_correlations(logs[0][:n], logs[1][index]).diagonal().median()))
    best = min(found, default=own)
    return best if own > MOST_ALIGNED and best < LEAST_FOREIGN else None


def _residuals(logs: torch.Tensor) -> torch.Tensor:
    """What is left [n, g] beside the means of rows and of groups."""
    return logs - logs.mean(1, keepdim=True) - logs.mean(0, keepdim=True) + logs.mean()


def _correlations(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Between the columns of a and those of b, over rows: [g of a, g of b]."""
    a, b = (each - each.mean(0) for each in (a, b))
    norms = [each.norm(dim=0).clamp(min=1e-30) for each in (a, b)]
    return (a / norms[0]).T @ (b / norms[1])
