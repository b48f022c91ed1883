"""Sums and gathers over memory that several devices, or several processes of one, see.

Every peer has a region of its own: flags that the others write, then slots of data that the others
read. One meeting of a program is: write data, tell everybody, wait for everybody, read. Slots and
flags are double: who writes for meeting n + 2 has been told that n + 1 began, hence that everybody
is done with n. So one meeting a sum is enough, and a flag waits to be read until n + 2 too.

A program keeps its count of meetings in device memory, so that a CUDA graph may repeat it, and has
flags and slots of its own, so that programs wait for nobody but their likes on the other devices.
Waiting ends after a time, or when a peer says that it has given up; a device that has given up
never waits nor tells again.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

TIMEOUT, MISMATCH, ABANDONED = 1, 2, 3
"""Causes of a failure: a peer is late, makes another call, or has given up."""
_TIMEOUT, _MISMATCH, _ABANDONED = (tl.constexpr(each) for each in (1, 2, 3))
_STORE_RELEASE = tl.constexpr("st.release.sys.global.b64 [$1], $2; mov.b32 $0, 0;")
_LOAD_ACQUIRE = tl.constexpr("ld.acquire.sys.global.b64 $0, [$1];")
_CLOCK = tl.constexpr("mov.u64 $0, %globaltimer;")


@triton.constexpr_function
def node_place(tree: Sequence[Sequence[int]], first: int, level: int) -> int:
    """Which entry of a tree is the sum over 2^level atoms from `first`; -1 if it is not one."""
    for place, node in enumerate(tree):
        if (node[0], node[1]) == (first, level):
            return place
    return -1


@triton.constexpr_function
def node_field(tree: Sequence[Sequence[int]], place: int, field: int) -> int:
    """One number of an entry: (first atom, level, peer, plane)."""
    return tree[place][field]


@triton.jit
def store_release(address, word):
    """Everything stored before, by any thread of this program, is seen by whoever reads this.

    Plain stores: atomics need not work across PCIe. `tl.debug_barrier` has to come before.
    """
    tl.inline_asm_elementwise(
        _STORE_RELEASE, "=r,l,l", [address, word], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def load_acquire(address):
    """An int64 at an address; nothing read after it is older."""
    return tl.inline_asm_elementwise(
        _LOAD_ACQUIRE, "=l,l", [address], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def clock():
    """Nanoseconds."""
    return tl.inline_asm_elementwise(_CLOCK, "=l", [], dtype=tl.int64, is_pure=False, pack=1)


@triton.jit
def meet(
    regions, block, number, tag, cause, patience,
    RANK: tl.constexpr, PEERS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Tell every peer, then wait for every peer; returns why that failed, or 0, and which peer.

    A flag is number * 2^32 + tag; the tag says what is being called.
    """
    tl.debug_barrier()
    word = (number.to(tl.int64) << 32) | tag
    row = (number & 1).to(tl.int64) * PEERS
    late = cause * 0
    if cause == 0:
        for peer in tl.static_range(PEERS):
            if peer != RANK:
                place = ((row + RANK) * PROGRAMS + block) * 8
                store_release(tl.load(regions + peer) + place, word)
    own = tl.load(regions + RANK)
    begin = clock()
    for peer in tl.static_range(PEERS):
        if peer != RANK:
            address = own + ((row + peer) * PROGRAMS + block) * 8
            gone = own + (2 * PEERS * PROGRAMS + peer) * 8
            seen = load_acquire(address)
            while (seen >> 32 != number) & (cause == 0):
                if load_acquire(gone) != 0:
                    cause, late = cause + _ABANDONED, late + peer
                elif clock() - begin > patience:
                    cause, late = cause + _TIMEOUT, late + peer
                seen = load_acquire(address)
            if (cause == 0) & (seen != word):
                cause, late = cause + _MISMATCH, late + peer
    tl.debug_barrier()
    return cause, late


@triton.jit
def give_up(
    regions, status, report, cause, late, number, site,
    RANK: tl.constexpr, PEERS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Keep the cause for later calls and for the host, and tell every peer."""
    found = (cause.to(tl.int64) << 60) | (late.to(tl.int64) << 52) | (site.to(tl.int64) << 32)
    found = found | (number.to(tl.int64) & 0xFFFFFFFF)
    store_release(status.to(tl.int64), found)
    store_release(report.to(tl.int64), found)
    for peer in tl.static_range(PEERS):
        if peer != RANK:
            store_release(tl.load(regions + peer) + (2 * PEERS * PROGRAMS + RANK) * 8, found)


@triton.jit
def slot_of(
    region, block, number, kind: tl.constexpr,
    PEERS: tl.constexpr, PROGRAMS: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """A pointer to a program's data of a meeting in a region; 16 divides it."""
    flags: tl.constexpr = (2 * PEERS * PROGRAMS + PEERS + 1) // 2 * 16
    place = ((number & 1).to(tl.int64) * PROGRAMS + block) * SLOT
    return tl.multiple_of((region + flags + place).to(tl.pointer_type(kind)), 16)


@triton.jit
def tree_of_peers(
    regions, nodes, size, piece, block, number, lane, inside, TREE: tl.constexpr,
    FIRST: tl.constexpr, LEVEL: tl.constexpr, RANK: tl.constexpr, PEERS: tl.constexpr,
    PROGRAMS: tl.constexpr, SLOT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum over 2^LEVEL atoms from FIRST, out of the nodes of all peers."""
    PLACE: tl.constexpr = node_place(TREE, FIRST, LEVEL)
    if PLACE >= 0:
        PEER: tl.constexpr = node_field(TREE, PLACE, 2)
        PLANE: tl.constexpr = node_field(TREE, PLACE, 3)
        if PEER == RANK:
            value = tl.load(nodes + PLANE * size + piece * BLOCK + lane, mask=inside, other=0.0)
        else:
            data = slot_of(
                tl.load(regions + PEER), block, number, tl.float32, PEERS, PROGRAMS, SLOT
            )
            value = tl.load(data + PLANE * BLOCK + lane, mask=inside, other=0.0, volatile=True)
    else:
        HALF: tl.constexpr = 1 << (LEVEL - 1)
        left = tree_of_peers(
            regions, nodes, size, piece, block, number, lane, inside,
            TREE, FIRST, LEVEL - 1, RANK, PEERS, PROGRAMS, SLOT, BLOCK,
        )  # fmt: skip
        right = tree_of_peers(
            regions, nodes, size, piece, block, number, lane, inside,
            TREE, FIRST + HALF, LEVEL - 1, RANK, PEERS, PROGRAMS, SLOT, BLOCK,
        )  # fmt: skip
        value = left + right
    return value


@triton.jit(do_not_specialize=["tag", "site", "patience"])
def reduce_over_peers(
    regions, counts, status, report, nodes, out, size, tag, site, patience,
    TREE: tl.constexpr, LEVEL: tl.constexpr, PLANES: tl.constexpr, RANK: tl.constexpr,
    PEERS: tl.constexpr, PROGRAMS: tl.constexpr, SLOT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out fp32 `[size]`: the tree over the nodes fp32 `[PLANES, size]` of every peer.

    regions int64 `[PEERS]` are addresses as seen from here, counts int32 `[PROGRAMS]`, status and
    report int64 `[1]`. TREE lists (first atom, level, peer, plane), LEVEL is that of the root.
    """
    block = tl.program_id(0)
    number = tl.load(counts + block)
    cause = (tl.load(status) != 0).to(tl.int32)
    before, lane = cause, tl.arange(0, BLOCK)
    for piece in range(block, tl.cdiv(size, BLOCK), tl.num_programs(0)):
        number += 1
        inside = piece * BLOCK + lane < size
        own = slot_of(tl.load(regions + RANK), block, number, tl.float32, PEERS, PROGRAMS, SLOT)
        for plane in tl.static_range(PLANES):
            node = tl.load(nodes + plane * size + piece * BLOCK + lane, mask=inside, other=0.0)
            tl.store(own + plane * BLOCK + lane, node, mask=inside)
        cause, late = meet(regions, block, number, tag, cause, patience, RANK, PEERS, PROGRAMS)
        if (cause != 0) & (before == 0):
            give_up(regions, status, report, cause, late, number, site, RANK, PEERS, PROGRAMS)
            before = cause
        value = tree_of_peers(
            regions, nodes, size, piece, block, number, lane, inside,
            TREE, 0, LEVEL, RANK, PEERS, PROGRAMS, SLOT, BLOCK,
        )  # fmt: skip
        tl.store(out + piece * BLOCK + lane, value, mask=inside)
    tl.store(counts + block, number)


@triton.jit(do_not_specialize=["tag", "site", "patience"])
def gather_over_peers(
    regions, counts, status, report, words, out, size, tag, site, patience,
    RANK: tl.constexpr, PEERS: tl.constexpr, PROGRAMS: tl.constexpr, SLOT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out `[PEERS, size]`: the words `[size]` of every peer; otherwise as reduce_over_peers."""
    block = tl.program_id(0)
    number = tl.load(counts + block)
    cause = (tl.load(status) != 0).to(tl.int32)
    before, lane = cause, tl.arange(0, BLOCK)
    kind: tl.constexpr = words.dtype.element_ty
    for piece in range(block, tl.cdiv(size, BLOCK), tl.num_programs(0)):
        number += 1
        place = piece * BLOCK + lane
        inside = place < size
        own = slot_of(tl.load(regions + RANK), block, number, kind, PEERS, PROGRAMS, SLOT)
        word = tl.load(words + place, mask=inside, other=0)
        tl.store(own + lane, word, mask=inside)
        tl.store(out + RANK * size + place, word, mask=inside)
        cause, late = meet(regions, block, number, tag, cause, patience, RANK, PEERS, PROGRAMS)
        if (cause != 0) & (before == 0):
            give_up(regions, status, report, cause, late, number, site, RANK, PEERS, PROGRAMS)
            before = cause
        for peer in tl.static_range(PEERS):
            if peer != RANK:
                slot = slot_of(tl.load(regions + peer), block, number, kind, PEERS, PROGRAMS, SLOT)
                theirs = tl.load(slot + lane, mask=inside, other=0, volatile=True)
                tl.store(out + peer * size + place, theirs, mask=inside)
    tl.store(counts + block, number)


@triton.jit
def tree_of_planes(
    planes, size, place, inside, TREE: tl.constexpr, FIRST: tl.constexpr, LEVEL: tl.constexpr,
    MOST: tl.constexpr,
):  # fmt: skip
    """The sum over 2^LEVEL atoms from FIRST, out of gathered planes."""
    PLACE: tl.constexpr = node_place(TREE, FIRST, LEVEL)
    if PLACE >= 0:
        PLANE: tl.constexpr = node_field(TREE, PLACE, 2) * MOST + node_field(TREE, PLACE, 3)
        value = tl.load(planes + PLANE * size + place, mask=inside, other=0.0)
    else:
        HALF: tl.constexpr = 1 << (LEVEL - 1)
        left = tree_of_planes(planes, size, place, inside, TREE, FIRST, LEVEL - 1, MOST)
        right = tree_of_planes(planes, size, place, inside, TREE, FIRST + HALF, LEVEL - 1, MOST)
        value = left + right
    return value


@triton.jit
def add_gathered(
    planes, out, size, TREE: tl.constexpr, LEVEL: tl.constexpr, MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out fp32 `[size]`: the tree over planes fp32 `[peers, MOST, size]`."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    value = tree_of_planes(planes, size, place, inside, TREE, 0, LEVEL, MOST)
    tl.store(out + place, value, mask=inside)


@triton.jit
def touch_regions(regions, seen, RANK: tl.constexpr, PEERS: tl.constexpr):
    """Write RANK + 1 to word RANK of every region; seen int64 `[PEERS]`: word i of region i."""
    for peer in tl.static_range(PEERS):
        region = tl.load(regions + peer)
        store_release(region + RANK * 8, region * 0 + RANK + 1)
        tl.store(seen + peer, load_acquire(region + peer * 8))
