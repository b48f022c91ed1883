"""Sums and gathers over regions of memory that peers share: how regions are laid out, what runs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .jit.peers import add_gathered, gather_over_peers, reduce_over_peers, touch_regions
from .launch import Launch, ceil_div

PROGRAMS = 64
"""At most: all of them must be on the card at once, since each waits for its like elsewhere."""
BLOCK = 1024
MOST_SITES = 1 << 16
ADD_BLOCK = 1024
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}

TreeNode = tuple[int, int, int, int]
"""First atom, level (2^level atoms), the peer that has the sum, its plane there."""


def peer_tree(nodes: Sequence[Sequence[tuple[int, int]]]) -> tuple[TreeNode, ...]:
    """The nodes of all peers, from (begin, length) pairs of each in the order of its planes."""
    return tuple(
        (begin, length.bit_length() - 1, peer, plane)
        for peer, theirs in enumerate(nodes)
        for plane, (begin, length) in enumerate(theirs)
    )


@dataclass(frozen=True, kw_only=True)
class RegionShape:
    """How one peer's region is laid out; the same for all. Sizes in bytes.

    First int64 flags `[2, peers, programs]`, then one word for each peer that has given up, then
    slots `[2, programs, slot]`; a slot holds `planes` blocks of fp32.
    """

    peers: int
    planes: int
    programs: int = PROGRAMS
    block: int = BLOCK

    @property
    def slot(self) -> int:
        return 4 * self.block * self.planes

    @property
    def flags(self) -> int:
        return (2 * self.peers * self.programs + self.peers + 1) // 2 * 16

    @property
    def nbytes(self) -> int:
        return self.flags + 2 * self.programs * self.slot


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One of several peers: what its kernels need to meet the others.

    `regions` int64 `[peers]`: addresses as this device sees them. `counts` int32 `[programs]`,
    zero at first. `status` int64 `[1]` on the device, `report` int64 `[1]` where the host reads it;
    both stay 0 until a call fails. `patience_ns` is how long a meeting may take.
    """

    rank: int
    shape: RegionShape
    regions: torch.Tensor
    counts: torch.Tensor
    status: torch.Tensor
    report: torch.Tensor
    patience_ns: int

    def _arguments(self, call: str, site: int, name: str, size: int) -> dict[str, object]:
        return {
            "regions": self.regions,
            "counts": self.counts,
            "status": self.status,
            "report": self.report,
            "size": size,
            "tag": zlib.crc32(f"{call} {name} {size}".encode()) >> 1,
            "site": site,
            "patience": self.patience_ns,
            "RANK": self.rank,
            "PEERS": self.shape.peers,
            "PROGRAMS": self.shape.programs,
            "SLOT": self.shape.slot,
        }

    def all_reduce(
        self,
        nodes: torch.Tensor,
        out: torch.Tensor,
        tree: tuple[TreeNode, ...],
        *,
        site: int,
        name: str,
    ) -> Launch:
        """out fp32 = the tree over the nodes fp32 `[planes, *out.shape]` of every peer.

        Every peer starts the same calls in the same order; `name` and the size are compared.
        `site`, below MOST_SITES, is what a report says of the call.
        """
        block = self.shape.block
        arguments = {
            "nodes": nodes,
            "out": out,
            "TREE": tree,
            "LEVEL": max(first + (1 << level) for first, level, _, _ in tree).bit_length() - 1,
            "PLANES": len(nodes),
            "BLOCK": block,
        }
        return Launch(
            kernel=reduce_over_peers,
            grid=(min(self.shape.programs, ceil_div(out.numel(), block)),),
            arguments=self._arguments("all_reduce", site, name, out.numel()) | arguments,
        )

    def all_gather(
        self, tensor: torch.Tensor, out: torch.Tensor, *, site: int, name: str
    ) -> Launch:
        """out `[peers, *tensor.shape]` = the tensor of every peer; shapes and dtypes are equal."""
        width = next(width for width in (4, 2, 1) if tensor.nbytes % width == 0)
        words = tensor.view(-1).view(WORDS[width])
        block = self.shape.block << (self.shape.planes.bit_length() - 1)
        arguments = {"words": words, "out": out.view(-1).view(WORDS[width]), "BLOCK": block}
        return Launch(
            kernel=gather_over_peers,
            grid=(min(self.shape.programs, ceil_div(len(words), block)),),
            arguments=self._arguments("all_gather", site, name, len(words)) | arguments,
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a device has reported: a cause of jit.peers, the peer in question, the site, the number
    of the meeting."""

    cause: int
    peer: int
    site: int
    number: int


def read_report(word: int) -> Failure | None:
    """What the word of a report says; None for 0."""
    if not word:
        return None
    return Failure(
        cause=word >> 60 & 0x7,
        peer=word >> 52 & 0xFF,
        site=word >> 32 & 0xFFFF,
        number=word & 0xFFFFFFFF,
    )


def add_planes_of_peers(
    planes: torch.Tensor, out: torch.Tensor, tree: tuple[TreeNode, ...]
) -> Launch:
    """out fp32 = the tree over gathered planes fp32 `[peers, most planes of one, *out.shape]`."""
    arguments = {
        "planes": planes,
        "out": out,
        "size": out.numel(),
        "TREE": tree,
        "LEVEL": max(first + (1 << level) for first, level, _, _ in tree).bit_length() - 1,
        "MOST": planes.shape[1],
        "BLOCK": ADD_BLOCK,
    }
    return Launch(
        kernel=add_gathered, grid=(ceil_div(out.numel(), ADD_BLOCK),), arguments=arguments
    )


def touch_peers(regions: torch.Tensor, seen: torch.Tensor, rank: int) -> Launch:
    """Write to every region and read from it; regions int64 `[peers]` are addresses of int64
    `[peers]` each. seen int64 `[peers]`."""
    arguments = {"regions": regions, "seen": seen, "RANK": rank, "PEERS": len(regions)}
    return Launch(kernel=touch_regions, grid=(1,), arguments=arguments, warps=1)
