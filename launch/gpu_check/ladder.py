"""The steps, in the order in which failures inform, and where on a machine each is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from isobit.errors import InputError

ONE, PAIR = "each GPU", "each pair"


@dataclass(frozen=True, kw_only=True)
class Step:
    """`function` is "module:name" in this room; `ranks` processes run it at once.

    `most_s` is how long it may take on a GPU, its kernels' compilation included.
    """

    name: str
    title: str
    function: str
    most_s: float
    over: str = ONE
    ranks: int = 1


STEPS = (
    Step(name="build", title="import, build, add_planes", function="products:build", most_s=60),
    Step(name="product", title="one int4 linear layer, 1 row: values",
         function="products:first_product", most_s=45),
    Step(name="row-bits", title="a row among 1, 16, 64, 300, in all blocks: bits",
         function="products:row_bits", most_s=90),
    Step(name="tp-bits", title="loop and split, tp 1, 3, 8: bits",
         function="products:degrees", most_s=60),
    Step(name="attention", title="attention: values, bits split or not",
         function="attention:attention", most_s=60),
    Step(name="other-ops", title="norm, silu * up, greedy choice, digest",
         function="products:other_ops", most_s=45),
    Step(name="model", title="small model, eager, against transformers",
         function="models:eager_model", most_s=90),
    Step(name="graph", title="graphs against eager, 20 replays: bits",
         function="models:graphs", most_s=90),
    Step(name="host-memory", title="sums of two ranks over host memory",
         function="sums:host_memory", most_s=60, over=PAIR, ranks=2),
    Step(name="peer-memory", title="sums of two ranks over peer memory",
         function="sums:peer_memory", most_s=60, over=PAIR, ranks=2),
    Step(name="sum-graph", title="sums of two ranks in a graph, 20 replays",
         function="sums:graph_of_sums", most_s=60, over=PAIR, ranks=2),
    Step(name="nccl", title="sums of two ranks through NCCL",
         function="sums:nccl", most_s=60, over=PAIR, ranks=2),
    Step(name="verify", title="isobit verify: two ranks against one",
         function="models:ranks", most_s=120, over=PAIR),
    Step(name="bandwidth", title="int4 linear layers of 1 row: bandwidth",
         function="speed:bandwidth", most_s=60),
    Step(name="graph-latency", title="latency of an empty graph",
         function="speed:graph_latency", most_s=30),
    Step(name="all-weights", title="every kind of weight: values, bits",
         function="products:all_weights", most_s=150),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step at a place: the GPU of each rank. `not_run` says why it is left out."""

    step: Step
    gpus: tuple[int, ...]
    not_run: str = ""

    @property
    def place(self) -> str:
        """As in reports: "cuda:0", or "cuda:0 + cuda:1"."""
        return " + ".join(f"cuda:{gpu}" for gpu in self.gpus)


def rungs(gpus: int, only: Sequence[str] = (), *, rehearsal: bool = False) -> list[Rung]:
    """Every step on every GPU, or on ranks that share the first one and on every pair.

    `only` names steps; raises InputError E-USAGE for a name that is none. In a rehearsal all GPUs
    are one simulation: steps of one process run at their first place.
    """
    names = [step.name for step in STEPS]
    if wrong := [name for name in only if name not in names]:
        raise InputError("E-USAGE", f"--only {','.join(wrong)}: steps are {', '.join(names)}")
    found = []
    for step in STEPS:
        if only and step.name not in only:
            continue
        if step.over == ONE:
            places = [(gpu,) for gpu in range(gpus)]
        else:
            places = [(0, 0), *combinations(range(gpus), 2)]
        # One process is told nothing of its GPUs there.
        alike = rehearsal and step.ranks == 1
        found += [Rung(step=step, gpus=place) for place in (places[:1] if alike else places)]
        if step.over == PAIR and gpus == 1:
            reason = "this machine has one GPU"
            found.append(Rung(step=step, gpus=(0, 1), not_run=reason))
    return found
