"""How long a sum and a gather over ranks take, by the messages of shard/estimate/traffic.py.

n ranks in h boxes; m bytes of a message: of a sum, all nodes (complete subtrees) of a rank; B what
a rank takes in a second from its box, N from another; `ring` and hops of the library, `flag` one
exchange of an own kernel.

    library, a ring:    ring + (n - h) * hop + (h - 1) * hop_N + (n - 1) * m / min(B, N)
    own kernel, h = 1:  flag + (n - 1) * m / B

The own kernel reads the nodes of all others at once, in one shot. Between boxes there is none: the
library gathers.
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.shard.estimate.traffic import Traffic

from .machines import Assumptions, Link


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

    def seconds(self, size: float, link: Link) -> float:
        """Time of `size` bytes into a rank."""
        return size / (link.gb_s * 1e9 * self.assumed.link_share)

    def ring(self, size: float) -> float:
        """An all-gather of the library: `size` bytes from each rank to all."""
        if self.degree == 1:
            return 0.0
        links = [self.inside] * (self.degree > self.boxes) + [self.between] * (self.boxes > 1)
        narrow = min(links, key=lambda link: link.gb_s)
        hops = (self.degree - self.boxes) * self.inside.hop_us
        hops += (self.boxes - 1) * self.between.hop_us
        sent = self.seconds((self.degree - 1) * size, narrow)
        return (self.assumed.ring_us + hops) * 1e-6 + sent

    def own(self, size: float) -> float:
        """A sum or a gather by an own kernel in one box: `size` bytes of each rank."""
        if self.degree == 1:
            return 0.0
        sent = self.seconds((self.degree - 1) * size, self.inside)
        return (self.inside.custom_us or 0.0) * 1e-6 + sent


@dataclass(frozen=True, kw_only=True)
class CollectiveTime:
    """Seconds of a step's collectives: all by the library, and as they are chosen, by own kernels
    in one box and by the library over several."""

    gather: float
    chosen: float


def collective_time(wires: Wires, traffic: Traffic, rows: int, sampled: int) -> CollectiveTime:
    """All messages of a step of `rows` rows, `sampled` of which make logits."""
    sizes = [(each.nbytes(rows, sampled), each.count) for each in traffic.messages]
    gather = sum(count * wires.ring(size) for size, count in sizes if size)
    if wires.boxes > 1:
        return CollectiveTime(gather=gather, chosen=gather)
    return CollectiveTime(
        gather=gather, chosen=sum(count * wires.own(size) for size, count in sizes if size)
    )
