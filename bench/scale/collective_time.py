"""How long a sum and a gather over ranks take, by the messages of shard/traffic.py.

r ranks of a box, h boxes, n ranks in all; m bytes of a message; B what a rank takes in, from its
box or (N) from another; `ring` and hops of the library, `flag` one exchange of an own kernel.

    library, a ring:      ring + (n - h) * hop + (h - 1) * hop_N + (n - 1) * m / min(B, N)
    own kernel, r ranks:  flag + (r - 1) * m / B
    a sum in two shots:   2 * flag + (r - 1) / r * (m + m_out) / B

where m is all nodes (complete subtrees) of a rank and m_out those that are left when the box has
added up its own: the root, or what the other boxes must have. The cheaper of one shot and two is
taken. Staged through the host's memory, a rank writes what others read: m more, or m + m_out / r.

Between boxes the library gathers what the boxes are left with (a box sends once, not each of its
ranks), and an own kernel hands it on inside:

    h > 1:                inside(m, m_out) + ring + (h - 1) * (hop_N + m_out / N)
                          + flag + (h - 1) * m_out / B
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.shard.atoms import complete_subtrees
from isobit.shard.plan import ShardPlan
from isobit.shard.traffic import Message, Traffic

from .machines import Assumptions, Link

TREE_SUMS = ("o_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Wires:
    """The links of a cluster as `degree` ranks use them, boxes filled one after the other."""

    degree: int
    box: int
    inside: Link
    between: Link
    assumed: Assumptions

    @property
    def boxes(self) -> int:
        return -(-self.degree // self.box)

    @property
    def most(self) -> int:
        """Ranks of the fullest box."""
        return min(self.degree, self.box)

    def seconds(self, size: float, link: Link) -> float:
        """Time of `size` bytes into a rank."""
        return size / (link.gb_s * 1e9 * self.assumed.link_share)

    def ring(self, size: float) -> float:
        """An all-gather of the library: `size` bytes from each rank to all."""
        if self.degree == 1:
            return 0.0
        narrow = self.between if self.boxes > 1 else self.inside
        if self.most > 1 and self.inside.gb_s < narrow.gb_s:
            narrow = self.inside
        hops = (self.degree - self.boxes) * self.inside.hop_us
        hops += (self.boxes - 1) * self.between.hop_us
        sent = self.seconds((self.degree - 1) * size, narrow)
        return (self.assumed.ring_us + hops) * 1e-6 + sent

    def inside_sum(self, size: float, left: float) -> float:
        """A sum by an own kernel in the fullest box: `size` bytes of a rank, `left` of the box."""
        ranks, flag = self.most, (self.inside.custom_us or 0.0) * 1e-6
        if ranks == 1:
            return 0.0
        staged = self.inside.staged
        one = (ranks - 1 + staged) * size
        two = (ranks - 1) / ranks * (size + left) + staged * (size + left / ranks)
        return min(flag + self.seconds(one, self.inside), 2 * flag + self.seconds(two, self.inside))

    def inside_gather(self, size: float, staged: float) -> float:
        """`size` bytes into each rank of a box; `staged` bytes of its own it may have to write."""
        if self.most == 1:
            return 0.0
        size += staged * self.inside.staged
        return (self.inside.custom_us or 0.0) * 1e-6 + self.seconds(size, self.inside)

    def between_boxes(self, size: float) -> float:
        """A ring over the boxes that brings `size` bytes into each, handed on inside."""
        if self.boxes == 1:
            return 0.0
        time = (self.assumed.ring_us + (self.boxes - 1) * self.between.hop_us) * 1e-6
        return time + self.seconds(size, self.between) + self.inside_gather(size, size)


@dataclass(frozen=True, kw_only=True)
class CollectiveTime:
    """Seconds of a step's collectives: by the library alone, and custom inside boxes."""

    gather: float
    inside: float
    between: float

    @property
    def custom(self) -> float:
        return self.inside + self.between


def box_nodes(plan: ShardPlan, box: int) -> int:
    """Complete subtrees that a box is left with, at most, when it has added up its own."""
    most = 0
    for first in range(0, plan.degree, box):
        last = min(first + box, plan.degree) - 1
        owned = range(plan.owned(first).start, plan.owned(last).stop)
        most = max(most, len(complete_subtrees(plan.atoms, owned)))
    return most


def collective_time(
    wires: Wires, plan: ShardPlan, traffic: Traffic, rows: int, sampled: int
) -> CollectiveTime:
    """All messages of a step of `rows` rows, `sampled` of which make logits."""
    gather = inside = between = 0.0
    for message in traffic.messages:
        size = message.nbytes(rows, sampled)
        if not size:
            continue
        gather += message.count * wires.ring(size)
        if message.site in TREE_SUMS:
            left = size // _nodes(message) * box_nodes(plan, wires.box)
            inside += message.count * wires.inside_sum(size, left)
            between += message.count * wires.between_boxes((wires.boxes - 1) * left)
        else:
            inside += message.count * wires.inside_gather((wires.most - 1) * size, size)
            others = wires.box * (wires.boxes - 1)
            between += message.count * wires.between_boxes(others * size)
    return CollectiveTime(gather=gather, inside=inside, between=between)


def _nodes(message: Message) -> int:
    nodes = message.shape[0]
    assert isinstance(nodes, int)
    return nodes
