"""What the ranks send each other in a step of runtime/forward/decoder.py, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.spec import DTYPES, ModelSpec
from ..plan.atoms import complete_subtrees
from ..plan.hosts import host_nodes
from ..plan.plan import ShardPlan


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

    A tree sum sends float32 nodes; ranks with fewer nodes than the most fill up with zeros. Between
    hosts `degree` counts hosts, and `nodes` holds those of the one that sends.
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
    columns = _most_columns(plan)
    messages = _messages(spec, dtype, ("T",), ("L", columns), max(nodes))
    return Traffic(degree=plan.degree, nodes=nodes, messages=messages)


def between_hosts(
    spec: ModelSpec, plan: ShardPlan, dtype: str, hosts: Sequence[range]
) -> list[Traffic]:
    """What each host sends to every other in a step (runtime/collectives/hierarchical.py).

    `hosts` are runs of ranks that together are all. A host sends its own complete subtrees and what
    its ranks gather, once to each other host, and fills nothing up.
    """
    columns = _most_columns(plan)
    return [
        Traffic(
            degree=len(hosts),
            nodes=(len(nodes),),
            messages=_messages(
                spec, dtype, (len(ranks), "T"), (len(ranks), "L", columns), len(nodes)
            ),
        )
        for ranks, nodes in zip(hosts, host_nodes(plan, hosts), strict=True)
    ]


def _most_columns(plan: ShardPlan) -> int:
    return max(plan.vocab.slice(plan.owned(rank)).size for rank in range(plan.degree))


def _messages(
    spec: ModelSpec,
    dtype: str,
    rows: tuple[int | str, ...],
    logits: tuple[int | str, ...],
    nodes: int,
) -> tuple[Message, ...]:
    hidden = spec.hidden_size

    def message(site: str, count: int, shape: tuple[int | str, ...], kind: str) -> Message:
        width = DTYPES[kind].itemsize
        return Message(site=site, count=count, shape=shape, dtype=kind, width=width)

    return (
        message("embed_tokens", 1, (*rows, hidden), dtype),
        message("o_proj", spec.layers, (nodes, "T", hidden), "float32"),
        message("down_proj", spec.layers, (nodes, "T", hidden), "float32"),
        message("lm_head", 1, logits, "float32"),
    )
