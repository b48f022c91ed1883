"""Sums and gathers over memory that several devices, or several processes of one, see.

Every peer has a region of its own: flags that the others write, then slots of data that the others
read. One meeting of a program is: write data, tell everybody, wait for everybody, read. Slots and
flags are double: who writes for meeting n + 2 has been told that n + 1 began, hence that everybody
is done with n. So one meeting a sum is enough, and a flag waits to be read until n + 2 too.

A program keeps its count of meetings in device memory, so that a CUDA graph may repeat it, and has
flags and slots of its own, so that programs wait for nobody but their likes on the other devices.
The first warp tells and waits, all peers at once; the others wait for it at a barrier.
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
LANES = 32
"""Peers at most: each has a lane of the warp that meets them."""
_LANES = tl.constexpr(LANES)
_FIRST_WARP = (
    ".reg .pred first; .reg .b32 thread; mov.u32 thread, %tid.x; setp.lt.u32 first, thread, 32;"
)
_FENCE = tl.constexpr(f"{{ {_FIRST_WARP} @first fence.acq_rel.sys; mov.b32 $0, 0; }}")
_STORE = tl.constexpr(
    f"{{ {_FIRST_WARP} .reg .pred there; setp.ne.and.s64 there, $1, 0, first; "
    "@there st.relaxed.sys.global.b64 [$1], $2; mov.b32 $0, 0; }"
)
_LOAD = tl.constexpr(
    f"{{ {_FIRST_WARP} .reg .pred there; setp.ne.and.s64 there, $1, 0, first; mov.b64 $0, $2; "
    "@there ld.acquire.sys.global.b64 $0, [$1]; }"
)
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
def fence():
    """By the first warp: what this program stored before the last barrier, by any of its threads,
    is seen by whoever sees what the first warp stores next."""
    tl.inline_asm_elementwise(_FENCE, "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def store_words(addresses, word):
    """The first warp stores int64 words at addresses; nothing where one is 0.

    Plain stores: atomics need not work across PCIe.
    """
    tl.inline_asm_elementwise(
        _STORE, "=r,l,l", [addresses, word], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def load_words(addresses, other):
    """The first warp loads int64 words, and nothing it reads afterwards is older; `other` where an
    address is 0, and in all other warps."""
    return tl.inline_asm_elementwise(
        _LOAD, "=&l,l,l", [addresses, other], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def clock():
    """Nanoseconds."""
    return tl.inline_asm_elementwise(_CLOCK, "=l", [], dtype=tl.int64, is_pure=False, pack=1)


@triton.jit
def other_peers(RANK: tl.constexpr, PEERS: tl.constexpr):
    """A lane for every peer, and which of them are others."""
    peer = tl.arange(0, _LANES)
    return peer, (peer < PEERS) & (peer != RANK)


@triton.jit
def meet(
    bases, own, block, number, tag, cause, patience,
    RANK: tl.constexpr, PEERS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Tell every peer, then wait for every peer; returns why that failed, or 0, and which peer: in
    the first warp, whose lanes do both, one for each peer. bases int64 `[LANES]`: their regions.

    A flag is number * 2^32 + tag; the tag says what is being called.

    Why one fence is enough. Data go out by all threads, then comes a barrier, then the fence of the
    first warp, then its relaxed stores of flags: a release, which is cumulative, so that it carries
    what the barrier has ordered before it. On the other side a lane loads the flag with acquire,
    then comes a barrier, then all threads read: what they read is ordered behind the flag, and they
    read past the first cache (volatile). Reads of the meeting before are ordered likewise, before
    the flag of this one, by the same barrier and fence.

    Only the first warp may take another way than the rest: between the barriers nothing here needs
    another one, and its lanes decide together, by reductions over all of them.
    """
    tl.debug_barrier()
    word = (number.to(tl.int64) << 32) | tag
    row = (number & 1).to(tl.int64) * PEERS
    peer, others = other_peers(RANK, PEERS)
    told = bases + ((row + RANK) * PROGRAMS + block) * 8
    flags = tl.where(others, own + ((row + peer) * PROGRAMS + block) * 8, 0)
    gone = tl.where(others, own + (2 * PEERS * PROGRAMS + peer) * 8, 0)
    fence()
    store_words(tl.where(others & (cause == 0), told, 0), word)
    late = cause * 0
    begin = clock()
    seen = load_words(flags, word)
    while (tl.max((seen >> 32 != number).to(tl.int32), 0) != 0) & (cause == 0):
        missing = seen >> 32 != number
        left = tl.min(tl.where(missing & (load_words(gone, word * 0) != 0), peer, _LANES), 0)
        if left < _LANES:
            cause, late = cause + _ABANDONED, late + left
        elif tl.max(clock() - begin + peer * 0, 0) > patience:
            cause, late = cause + _TIMEOUT, late + tl.min(tl.where(missing, peer, _LANES), 0)
        seen = load_words(flags, word)
    other = tl.min(tl.where(seen != word, peer, _LANES), 0)
    if (cause == 0) & (other < _LANES):
        cause, late = cause + _MISMATCH, late + other
    tl.debug_barrier()
    return cause, late


@triton.jit
def give_up(
    bases, status, report, cause, late, number, site,
    RANK: tl.constexpr, PEERS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Keep the cause for later calls and for the host, and tell every peer."""
    found = (cause.to(tl.int64) << 60) | (late.to(tl.int64) << 52) | (site.to(tl.int64) << 32)
    found = found | (number.to(tl.int64) & 0xFFFFFFFF)
    _, others = other_peers(RANK, PEERS)
    fence()
    store_words(status.to(tl.int64), found)
    store_words(report.to(tl.int64), found)
    store_words(tl.where(others, bases + (2 * PEERS * PROGRAMS + RANK) * 8, 0), found)


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
    peers = tl.arange(0, _LANES)
    bases, region = tl.load(regions + peers, mask=peers < PEERS, other=0), tl.load(regions + RANK)
    for piece in range(block, tl.cdiv(size, BLOCK), tl.num_programs(0)):
        number += 1
        inside = piece * BLOCK + lane < size
        own = slot_of(region, block, number, tl.float32, PEERS, PROGRAMS, SLOT)
        for plane in tl.static_range(PLANES):
            node = tl.load(nodes + plane * size + piece * BLOCK + lane, mask=inside, other=0.0)
            tl.store(own + plane * BLOCK + lane, node, mask=inside)
        cause, late = meet(
            bases, region, block, number, tag, cause, patience, RANK, PEERS, PROGRAMS
        )
        if (cause != 0) & (before == 0):
            give_up(bases, status, report, cause, late, number, site, RANK, PEERS, PROGRAMS)
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
    peers = tl.arange(0, _LANES)
    bases, region = tl.load(regions + peers, mask=peers < PEERS, other=0), tl.load(regions + RANK)
    for piece in range(block, tl.cdiv(size, BLOCK), tl.num_programs(0)):
        number += 1
        place = piece * BLOCK + lane
        inside = place < size
        own = slot_of(region, block, number, kind, PEERS, PROGRAMS, SLOT)
        word = tl.load(words + place, mask=inside, other=0)
        tl.store(own + lane, word, mask=inside)
        tl.store(out + RANK * size + place, word, mask=inside)
        cause, late = meet(
            bases, region, block, number, tag, cause, patience, RANK, PEERS, PROGRAMS
        )
        if (cause != 0) & (before == 0):
            give_up(bases, status, report, cause, late, number, site, RANK, PEERS, PROGRAMS)
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
        store_words(region + RANK * 8, region * 0 + RANK + 1)
        tl.store(seen + peer, load_words(region + peer * 8, region * 0))
