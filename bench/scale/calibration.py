"""The formula against what docs/performance.md measured on two cores of a CPU.

Bandwidth is what the machine read in the same minutes, speeds of products and collectives are those
of `isobit bench kernels` and `isobit bench collectives`. The 0.45 ms outside kernels and the 0.3 ms
between products were found by taking a decode step apart, so the rows at batch 1 are partly the
formula's own input; the others are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.shard.model.spec import spec_from_config

from ..shape import SHAPE
from .collective_time import Wires
from .machines import Assumptions, Card, Link
from .models import Model, assumed
from .step_time import Workload, step_time
from .sweep import planned

CONFIG = {**SHAPE, "tie_word_embeddings": False}
SHARED = Link(
    name="shared memory", gb_s=25, hop_us=242, custom_us=1.2, source="isobit bench collectives"
)
ASSUMED = Assumptions(
    flop_share=1.0,
    link_share=1.0,
    ring_us=1.0,
    kernel_us=0.3e3 / 12,
    step_us=450,
)
THREAD_TFLOP_S = 0.46
"""One thread's int4 products of 16 and more rows."""
FAST, SLOW = (76, 78), (50, 52)
"""GB/s that two threads read: the two speeds of the machine."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row of docs/performance.md: least and most milliseconds, and GB/s of the machine then."""

    name: str
    degree: int
    workload: Workload
    read_gb_s: tuple[float, float]
    ms: tuple[float, float]


BATCH_1 = Workload(name="decode 1", batch=1, context=96)
BATCH_16 = Workload(name="decode 16", batch=16, context=48)
PREFILL = Workload(name="prefill 512", batch=1, context=512, prefill=True)
ROWS = (
    Measured(name="batch 1, fast", degree=1, workload=BATCH_1, read_gb_s=FAST, ms=(6.7, 6.9)),
    Measured(name="batch 1, fast", degree=2, workload=BATCH_1, read_gb_s=FAST, ms=(6.5, 7.0)),
    Measured(name="batch 1, slow", degree=1, workload=BATCH_1, read_gb_s=SLOW, ms=(8.7, 9.2)),
    Measured(name="batch 1, slow", degree=2, workload=BATCH_1, read_gb_s=SLOW, ms=(8.5, 8.8)),
    Measured(name="batch 16", degree=1, workload=BATCH_16, read_gb_s=FAST, ms=(25.6, 26.1)),
    Measured(name="batch 16", degree=2, workload=BATCH_16, read_gb_s=FAST, ms=(25.7, 25.8)),
    Measured(name="prefill of 512", degree=1, workload=PREFILL, read_gb_s=FAST, ms=(738, 738)),
    Measured(name="prefill of 512", degree=2, workload=PREFILL, read_gb_s=FAST, ms=(739, 739)),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Predicted milliseconds beside a measurement; `off` is predicted over measured, minus 1."""

    row: Measured
    predicted_ms: float

    @property
    def off(self) -> float:
        return self.predicted_ms / (sum(self.row.ms) / 2) - 1


def shape() -> Model:
    """The shape that was measured, with INT4 weights of group 128."""
    spec = assumed(spec_from_config(CONFIG, None), "int4", 128)
    return Model(name="measured", source="docs/performance.md", billion_parameters=0.6, spec=spec)


def compare() -> list[Comparison]:
    """Every measured row, predicted. A rank of two has half of the machine."""
    model, found = shape(), []
    for row in ROWS:
        cut = planned(model, row.degree)
        card = Card(
            name="CPU",
            gib=1,
            read_gb_s=sum(row.read_gb_s) / 2 / row.degree,
            tflop_s=2 * THREAD_TFLOP_S / row.degree,
            read_share=0.98,
            source="docs/performance.md",
        )
        wires = Wires(degree=row.degree, box=2, inside=SHARED, between=SHARED, assumed=ASSUMED)
        steps = row.workload.steps(cut.memory.step_rows)
        launches = len(steps) * model.spec.layers  # A pause for each layer, as it was found.
        time = step_time(cut.works, cut.traffic, card, wires, steps, launches)
        found.append(Comparison(row=row, predicted_ms=time.total * 1e3))
    return found
