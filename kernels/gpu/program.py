"""The forward pass on a CUDA device: ops recorded once, then listed as launches for few shapes.

`kernels.record` records into it as into `kernels.program.Program`. A step is padded to a shape
(`shape`); what it holds is copied to where the launches of every shape read it (`step_memory`).
Decode runs as CUDA graphs, all else as lists.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch

from isobit.errors import InputError

from ..step.buffer import Buffer
from ..step.kv_cache import PAGE
from ..step.step import Step, StepLimits, check_step
from . import record
from .arena import Arena
from .attention import Heads
from .bound import Bound, Op
from .card import MOST_GRAPHS, MOST_SAMPLED, Card
from .launch import ceil_div
from .listing import Call, Item, Listing
from .readout import Readout, Spoken, StepOutcome
from .shape import Shape, largest_shape, padded, prepared_shapes, shape_of
from .step_memory import StepMemory

MOST_LISTS = 32
"""Lists of steps that are not decode; making one anew takes some milliseconds."""


class GpuProgram:
    """Records ops in order, then runs them. What it is given must outlive it."""

    gpu = record

    def __init__(self, limits: StepLimits, card: Card, *, most_rows: int, eager: bool) -> None:
        """For steps of up to `most_rows` rows, MOST_SAMPLED of them sampled. The last page of
        `limits.pages` is kept spare: rows that fill up a shape write there. `eager`: without
        graphs."""
        self.device, self.limits, self.step = card.device, limits, Step.empty()
        self._card, self._eager, self._most_rows = card, eager, most_rows
        spare = limits.pages - 1
        self._allowed = dataclasses.replace(limits, pages=spare)
        pages = min(ceil_div(limits.positions, PAGE), spare)
        self._positions = min(limits.positions, pages * PAGE)
        self._capacity = padded(most_rows)
        self._most_sampled = min(self._capacity, MOST_SAMPLED)
        self._memory = StepMemory(card, self._capacity, pages, spare)
        self._arena = Arena(self.device)
        self._buffers: list[Buffer] = []
        self._ops: list[Op] = []
        self._sampled, self._sampled_from = False, 0
        self._heads: Heads | None = None
        self._readout: Readout | None = None
        self._views: dict[tuple[int, int], torch.Tensor] = {}
        self._decode: OrderedDict[Shape, Listing] = OrderedDict()
        self._others: OrderedDict[Shape, Listing] = OrderedDict()

    def buffer(self, width: int, dtype: torch.dtype, planes: int = 1) -> Buffer:
        """A new buffer for the rows of the largest step, or for sampled rows."""
        made = Buffer(len(self._buffers), planes, width, dtype, self._sampled)
        self._allocate(made)
        self._buffers.append(made)
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of all memory on the device beside weights and cache."""
        buffers = sum(buffer.nbytes for buffer in self._buffers)
        read = 0 if self._readout is None else self._readout.nbytes
        return buffers + self._arena.nbytes + self._memory.nbytes + read

    def use_sampled_rows(self) -> None:
        """What is recorded from here on runs over the sampled rows, and not without any."""
        self._sampled, self._sampled_from = True, len(self._ops)

    def rows_of(self, buffer: Buffer) -> torch.Tensor:
        """The rows of the current step in a buffer, without those that fill up its shape."""
        count = self.step.sampled_rows if buffer.sampled else self.step.rows
        view = self._views.get((buffer.id, count))
        if view is None:
            view = buffer.rows(padded(count))[..., :count, :]
            self._views[buffer.id, count] = view
        return view

    def planes_of(self, buffer: Buffer) -> torch.Tensor:
        """The same as `[planes, rows, width]`, also where there is one plane."""
        rows = self.rows_of(buffer)
        return rows if buffer.planes > 1 else rows[None]

    def record(self, op: Op) -> None:
        """Record an op."""
        self._ops.append(op)

    def read_out(self, spoken: Spoken) -> None:
        """Have every list end by digesting what a step says, for `outcome`."""
        self._readout = Readout(self._card, spoken, self._most_sampled)

    def outcome(self, hidden: torch.Tensor, logits: torch.Tensor) -> StepOutcome:
        """What reads the step that ran last, of which rows_of gave `hidden` and `logits`."""
        assert self._readout is not None
        return StepOutcome(self._readout, hidden, logits, padded(len(logits)))

    def call(self, function: Callable[[], None]) -> None:
        """Record a Python function; no graph holds it."""
        call = Call(function=function, capturable=False)
        self._ops.append(lambda _: [call])

    def heads_of(self, head_to_kv: list[int], kv_heads: int, head: int) -> Heads:
        """The heads of size `head` that attend; rows are cut into chunks for them, in every layer
        alike.

        Raises InputError E-KERNEL-SHAPE unless KV heads ascend with the query heads.
        """
        heads = Heads.of(head_to_kv, kv_heads, self.device, head)
        assert self._heads is None or self._heads.most == heads.most, "layers differ in heads"
        self._heads = heads
        return heads

    def prepare(self) -> int:
        """Compile and load every kernel that a step of any shape can start, and let the memory
        between kernels grow to its largest; returns how many there are.

        Whoever waits for another rank within a kernel must not have to wait for a compiler there.
        """
        known: set[Hashable] = set()
        most = (self._capacity, self._most_sampled, self._positions)
        for shape in prepared_shapes(*most, self._heads):
            for launch in self._listed(shape).launches():
                if (key := launch.key) not in known:
                    known.add(key)
                    launch.load()
        return len(known)

    def run(self, step: Step) -> None:
        """Start everything in order. Raises InputError E-KERNEL-SHAPE, E-KERNEL-INDEX, and what
        recorded functions raise."""
        check_step(step, self._allowed, self.step)
        if step.rows > self._most_rows:
            raise InputError(
                "E-KERNEL-SHAPE", f"step: {step.rows} rows; memory is there for {self._most_rows}"
            )
        if step.sampled_rows > self._most_sampled:
            raise InputError(
                "E-KERNEL-SHAPE",
                f"step: {step.sampled_rows} sampled rows; memory is there for {self._most_sampled}",
            )
        self.step = step
        if not step.rows:
            return
        shape, chunks = shape_of(step, self._heads)
        listing = self._listing(shape)
        self._memory.write(step, shape, chunks)
        listing.run()
        # The first run of a list sets up what a graph must not; from the second on it is one.
        if shape.decode and not self._eager and not listing.captured:
            listing.capture(self._card)

    def items(self, step: Step) -> Sequence[Item]:
        """What `run` would start for a step, in order; nothing of it is checked or started."""
        return self._listed(shape_of(step, self._heads)[0]).items

    def close(self) -> None:
        """Let go of all that was recorded, after which nothing can be run.

        Recorded functions refer to whoever recorded them, and so keep it and its weights alive.
        """
        for each in (self._ops, self._decode, self._others, self._buffers, self._views):
            each.clear()
        self._readout = None

    def _listing(self, shape: Shape) -> Listing:
        if not self._decode and not self._others:
            # The arena grows to the largest op at once, and no list keeps a smaller one alive.
            self._listed(largest_shape(self._capacity, self._heads))
        kept = self._decode if shape.decode else self._others
        listing = kept.get(shape)
        if listing is None:
            listing = kept[shape] = self._listed(shape)
        kept.move_to_end(shape)
        if len(kept) > (MOST_GRAPHS if shape.decode else MOST_LISTS):
            kept.popitem(last=False)
        return listing

    def _listed(self, shape: Shape) -> Listing:
        ops = self._ops if shape.sampled or not self._sampled else self._ops[: self._sampled_from]
        bound = Bound(shape, self._memory, self._arena)
        items = [item for op in ops for item in op(bound)]
        return Listing([*items, *(self._readout.items(bound) if self._readout else ())])

    def _allocate(self, buffer: Buffer) -> None:
        rows = self._most_sampled if buffer.sampled else self._capacity
        size = buffer.planes * rows * buffer.width
        buffer.place(torch.empty(size, dtype=buffer.dtype, device=self.device), rows)
