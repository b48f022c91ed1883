"""How long a sum and a gather over ranks take, by the messages of shard/traffic.py.

r ranks of a box, h boxes, n ranks in all; m bytes of a message; B what a rank takes in a second
from its box, N from another; `ring` and hops of the library, `flag` one exchange of an own kernel.

    library, a ring:       ring + (n - h) * hop + (h - 1) * hop_N + (n - 1) * m / min(B, N)
    own kernel, r ranks:   flag + (r - 1) * m / B
    a sum in two shots:    2 * flag + (r - 1) / r * (m + left) / B

where m is all nodes (complete subtrees) of a rank and `left` those that remain when the box has
added up its own. The cheaper of one shot and two is taken. Staged through the host's memory, a rank
also writes what others read, m in one shot and m + left / r in two. Pieces overlap: the larger of
what is read and written counts.

Over several boxes each adds up its own nodes, the first ranks of the boxes send each other what is
left (all at once, over trees of boxes), and each hands the root on inside its box:

    sum, h > 1:     inside + ring + ceil(log2 h) * hop_N + left of the others / N + flag + root / B
    gather, h > 1:  inside + ring + ceil(log2 h) * hop_N + theirs / N + flag + n * m / B
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.shard.atoms import complete_subtrees
from isobit.shard.plan import ShardPlan
from isobit.shard.traffic import Traffic

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
        links = [self.inside] * (self.most > 1) + [self.between] * (self.boxes > 1)
        narrow = min(links, key=lambda link: link.gb_s)
        hops = (self.degree - self.boxes) * self.inside.hop_us
        hops += (self.boxes - 1) * self.between.hop_us
        sent = self.seconds((self.degree - 1) * size, narrow)
        return (self.assumed.ring_us + hops) * 1e-6 + sent

    def inside_sum(self, size: float, left: float) -> float:
        """A sum by an own kernel in the fullest box: `size` bytes of a rank, `left` of the box."""
        ranks, flag = self.most, (self.inside.custom_us or 0.0) * 1e-6
        if ranks == 1:
            return 0.0
        one, two = (ranks - 1) * size, (ranks - 1) / ranks * (size + left)
        if self.inside.staged:
            one, two = max(one, size), max(two, size + left / ranks)
        return min(flag + self.seconds(one, self.inside), 2 * flag + self.seconds(two, self.inside))

    def inside_gather(self, size: float, written: float) -> float:
        """`size` bytes into each rank of a box; one rank writes `written` of them, if staged."""
        if self.most == 1:
            return 0.0
        largest = max(size, written) if self.inside.staged else size
        return (self.inside.custom_us or 0.0) * 1e-6 + self.seconds(largest, self.inside)

    def between_boxes(self, size: float, result: float) -> float:
        """`size` bytes from other boxes into each, then `result` bytes from its first rank."""
        if self.boxes == 1:
            return 0.0
        hops = (self.boxes - 1).bit_length() * self.between.hop_us
        time = (self.assumed.ring_us + hops) * 1e-6 + self.seconds(size, self.between)
        return time + self.inside_gather(result, result)


@dataclass(frozen=True, kw_only=True)
class CollectiveTime:
    """Seconds of a step's collectives: by the library alone, and by own kernels inside boxes."""

    gather: float
    inside: float
    between: float

    @property
    def custom(self) -> float:
        return self.inside + self.between


def box_nodes(plan: ShardPlan, box: int) -> list[int]:
    """For each box, the complete subtrees that remain when it has added up its own."""
    nodes = []
    for first in range(0, plan.degree, box):
        last = min(first + box, plan.degree) - 1
        owned = range(plan.owned(first).start, plan.owned(last).stop)
        nodes.append(len(complete_subtrees(plan.atoms, owned)))
    return nodes


def collective_time(
    wires: Wires, plan: ShardPlan, traffic: Traffic, rows: int, sampled: int
) -> CollectiveTime:
    """All messages of a step of `rows` rows, `sampled` of which make logits."""
    nodes = box_nodes(plan, wires.box)
    others = wires.box * (wires.boxes - 1)
    gather = inside = between = 0.0
    for message in traffic.messages:
        size, count = message.nbytes(rows, sampled), message.count
        if not size:
            continue
        gather += count * wires.ring(size)
        if message.site in TREE_SUMS:
            node = size // max(traffic.nodes)
            inside += count * wires.inside_sum(size, max(nodes) * node)
            between += count * wires.between_boxes((sum(nodes) - min(nodes)) * node, node)
        else:
            inside += count * wires.inside_gather((wires.most - 1) * size, size)
            between += count * wires.between_boxes(others * size, wires.degree * size)
    return CollectiveTime(gather=gather, inside=inside, between=between)
