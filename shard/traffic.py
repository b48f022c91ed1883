"""What the ranks send each other in a step: runtime/decoder.py and its collectives, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from .atoms import complete_subtrees
from .plan import ShardPlan
from .spec import DTYPES, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Message:
    """One kind of message that every rank sends to every other, `count` times a step.

    `shape` is [nodes, rows, columns] with letters T and L for rows; `width` is bytes per element.
    """

    site: str
    count: int
    shape: tuple[int | str, ...]
    dtype: str
    width: int

    def nbytes(self, rows: int, sampled: int) -> int:
        """Bytes of one message in a step of `rows` rows, `sampled` of which make logits."""
        total = self.width
        for size in self.shape:
            total *= {"T": rows, "L": sampled}[size] if isinstance(size, str) else size
        return total


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The messages of a step. `nodes[rank]` counts the complete subtrees that a rank sends.

    A tree sum sends float32 nodes; ranks with fewer nodes than the most fill up with zeros.
    """

    degree: int
    nodes: tuple[int, ...]
    messages: tuple[Message, ...]

    def sent(self, message: Message, rows: int, sampled: int) -> int:
        """Bytes that a rank sends in a step, which are those it receives: (tp - 1) * message."""
        return (self.degree - 1) * message.count * message.nbytes(rows, sampled)

    def total(self, rows: int, sampled: int) -> int:
        return sum(self.sent(message, rows, sampled) for message in self.messages)


def step_traffic(spec: ModelSpec, plan: ShardPlan, dtype: str) -> Traffic:
    """The messages of every step of a model under a plan; `dtype` is the run's."""
    owned = [plan.owned(rank) for rank in range(plan.degree)]
    nodes = tuple(len(complete_subtrees(plan.atoms, atoms)) for atoms in owned)
    columns = max(plan.vocab.slice(atoms).size for atoms in owned)
    hidden = spec.hidden_size

    def message(site: str, count: int, shape: tuple[int | str, ...], kind: str) -> Message:
        width = DTYPES[kind].itemsize
        return Message(site=site, count=count, shape=shape, dtype=kind, width=width)

    return Traffic(
        degree=plan.degree,
        nodes=nodes,
        messages=(
            message("embed_tokens", 1, ("T", hidden), dtype),
            message("o_proj", spec.layers, (max(nodes), "T", hidden), "float32"),
            message("down_proj", spec.layers, (max(nodes), "T", hidden), "float32"),
            message("lm_head", 1, ("L", columns), "float32"),
        ),
    )
