"""Where the ops of a program read and write: memory for the rows of a step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Buffer:
    """Memory `[planes, rows, width]` that grows to the largest step seen, then stays."""

    id: int
    planes: int
    width: int
    dtype: torch.dtype
    sampled: bool
    capacity: int = 0
    memory: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    # Making a view takes longer than most ops: steps of one size share theirs.
    _views: dict[int, torch.Tensor] = field(default_factory=dict)

    def rows(self, count: int) -> torch.Tensor:
        """The first rows as `[count, width]`; with several planes as `[planes, count, width]`."""
        view = self._views.get(count)
        if view is None:
            used = self.memory[: self.planes * count * self.width]
            view = used.view(self.planes, count, self.width)
            view = self._views[count] = view[0] if self.planes == 1 else view
        return view

    def place(self, memory: torch.Tensor, capacity: int) -> None:
        """Take other memory, for up to `capacity` rows."""
        self.memory, self.capacity = memory, capacity
        self._views.clear()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one plane."""
        return self.width * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes
