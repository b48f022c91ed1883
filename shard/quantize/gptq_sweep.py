"""GPTQ's pass over the columns of a weight.

Weights lie transposed, [K, N], so that a column is contiguous. Errors of finished columns reach the
later ones lazily: one matrix product for a panel of columns, one for a chunk of a panel, and a
matrix-vector product for a column inside its chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from . import quality
from .cholesky import Factor
from .grid import Grid

CHUNK = 32


class Sweep:
    """Rounds `columns` float32 [K, N], in the order of `factor`.

    Column k belongs to group `groups[k]`. `fixed` holds scales and zero points [G, N] chosen
    beforehand; without it a group is `width` columns one after another, and its scale is chosen
    when its panel is reached.
    """

    def __init__(
        self,
        columns: torch.Tensor,
        factor: Factor,
        grid: Grid,
        groups: list[int],
        width: int,
        fixed: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self.columns, self.factor, self.grid = columns, factor, grid
        self.groups, self.width, self.chosen = groups, width, fixed is not None
        self.codes = torch.empty(columns.shape, dtype=torch.uint8)
        self.errors = torch.empty_like(columns)
        self.clipped, self._damped = 0, torch.zeros((), dtype=torch.float64)
        self._scales: list[torch.Tensor] = [] if fixed is None else list(fixed[0])
        self._zeros: list[torch.Tensor] = [] if fixed is None else list(fixed[1])

    def run(self, block_size: int) -> bool:
        """Round all columns; False when a number was too large or not a number."""
        upper, errors = self.factor.upper, self.errors
        for begin, end in self._panels(block_size):
            carried = upper[:begin, begin:end].T @ errors[:begin]
            if not self.chosen and begin % self.width == 0:
                self._choose(begin, end, carried)
            for start in range(begin, end, CHUNK):
                self._round(start, min(start + CHUNK, end), begin, carried)
        return bool(self._damped.isfinite())

    def output_error(self) -> float:
        """tr(E H E^T): what the sweep summed up, less the part of the damping."""
        damped = (quality.squares(self.errors) * self.factor.damping).sum()
        return max(float(self._damped - damped), 0.0)

    def sqnr_db(self, weight: torch.Tensor) -> float:
        """Signal to noise of the weights, zeroed ones included."""
        signal, kept, noise = (
            float(quality.squares(each).sum()) for each in (weight, self.columns, self.errors)
        )
        return quality.sqnr_db(signal, noise + max(signal - kept, 0.0))

    def scales(self) -> torch.Tensor:
        """float32 [N, G]."""
        return torch.stack(self._scales, dim=1)

    def zeros(self) -> torch.Tensor:
        """float32 [N, G]."""
        return torch.stack(self._zeros, dim=1)

    def _panels(self, block_size: int) -> Iterator[tuple[int, int]]:
        """Ranges of about `block_size` columns that hold whole groups or lie inside one."""
        span = max(block_size // self.width, 1) * self.width
        size = span if self.width <= block_size else block_size
        for first in range(0, len(self.columns), span):
            last = min(first + span, len(self.columns))
            for begin in range(first, last, size):
                yield begin, min(begin + size, last)

    def _choose(self, begin: int, end: int, carried: torch.Tensor) -> None:
        """Choose the scales of the groups that begin in a panel, from weights as it finds them.

        The paper's weights at that point are W + E R_<P R_PP^-1: optimal as long as nothing later
        is rounded. Groups see the errors of earlier panels and not those of their own, as in the
        authors' code; scales chosen group by group give slightly larger errors.
        """
        upper, last = self.factor.upper, max(end, begin + self.width)
        values = self.columns[begin:last]
        if begin:
            if last > end:
                carried = upper[:begin, begin:last].T @ self.errors[:begin]
            corner = upper[begin:last, begin:last]
            values = values + torch.linalg.solve_triangular(corner.T, carried, upper=False)
        scales, zeros = self.grid.fit(values.view(-1, self.width, values.shape[1]), dim=1)
        self._scales += scales
        self._zeros += zeros

    def _round(self, start: int, end: int, begin: int, carried: torch.Tensor) -> None:
        """Round columns start to end of the panel that begins at `begin`."""
        upper, columns = self.factor.upper, self.columns[start:end]
        diagonal = upper.diagonal()[start:end, None]
        wanted = upper[begin:start, start:end].T @ self.errors[begin:start]
        wanted.add_(carried[start - begin : end - begin]).div_(diagonal).add_(columns)
        pull = (upper[start:end, start:end].T / diagonal).contiguous()
        errors, rounded = self.errors[start:end], torch.empty_like(columns)
        lows, highs = self._limits(start, end)
        codes = torch.empty_like(columns)
        rows = zip(
            *(each.unbind() for each in (wanted, columns, errors, rounded, codes)),
            self.groups[start:end],
            lows,
            highs,
            strict=True,
        )
        for i, (target, column, error, near, code, group, low, high) in enumerate(rows):
            if i:
                target.addmv_(errors[:i].T, pull[i, :i])
            scale = self._scales[group]
            torch.div(target, scale, out=near).round_()
            torch.clamp(near, low, high, out=code)
            torch.addcmul(column, code, scale, value=-1, out=error)
        self.clipped += int((rounded != codes).sum())
        rest = (wanted - columns).add_(errors).mul_(diagonal)
        self._damped += quality.squares(rest).sum()
        self.codes[start:end] = codes.sub_(torch.stack(lows))

    def _limits(self, start: int, end: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The range of code - zero of each column, as one tensor [N] a column."""
        low = {group: -self._zeros[group] for group in set(self.groups[start:end])}
        high = {group: self.grid.top + each for group, each in low.items()}
        groups = self.groups[start:end]
        return [low[group] for group in groups], [high[group] for group in groups]
