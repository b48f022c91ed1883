"""Compile kernels for architectures that are not here, and say what the machine code is like.

    python -m tests.gpu.ahead_of_time.compiled few|all

`few`: what the test suite looks at. `all`: every kernel in every configuration of every
architecture, and at the edges of its arguments (`edges`). One line of JSON a kernel; status 1 if
one breaks a rule.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from triton.errors import TritonError

from isobit.kernels.gpu.architecture import ARCHITECTURES, Architecture
from isobit.kernels.gpu.catalog import Entry, entries
from isobit.kernels.gpu.launch import Launch
from isobit.kernels.gpu.weight import CHUNK
from tests.gpu.ahead_of_time.compile import Compiled, compile_launch

from .edges import edges

catalog = cache(entries)
MEETING = {
    "bar.sync",
    "fence.acq_rel.sys",
    "st.relaxed.sys.global.b64",
    "ld.acquire.sys.global.b64",
    "ld.volatile.global.v4.b32",
}
SHARED = "quantized_product: int4 group 128 symmetric float16 scales, bfloat16"


Job = tuple[int, int, str]
"""An architecture, a place in its catalog, and an edge of that entry's arguments or ""."""


def chosen(which: str) -> Iterator[Job]:
    """What to compile."""
    for capability, architecture in ARCHITECTURES.items():
        for place, entry in enumerate(catalog(architecture)):
            if which == "all" or _few(capability, entry):
                yield capability, place, ""
    for capability in (90,) if which == "few" else (86, 90):
        for place, entry in _different(catalog(ARCHITECTURES[capability]), which):
            for edge, _ in edges(entry.launch):
                yield capability, place, edge


def _few(capability: int, entry: Entry) -> bool:
    if capability in (80, 89):  # the instructions of 86
        return entry.same == SHARED and (entry.spills or "blocks of 16" in entry.name)
    return entry.basic and (entry.matrix or capability == 90)


def _different(found: list[Entry], which: str) -> Iterator[tuple[int, Entry]]:
    """One entry of each kernel, or for "all" one of each kernel, form and schedule: what the
    arguments are does not depend on the block."""
    seen = set()
    for place, entry in enumerate(found):
        kernel, level = entry.launch.kernel.__name__, entry.launch.arguments.get("LEVEL")
        key = kernel if which == "few" else (entry.same, level)
        if key not in seen and (entry.basic or which == "all"):
            seen.add(key)
            yield place, entry


def compiled(job: Job) -> dict:
    """What one kernel came to, and the rules that it breaks."""
    capability, place, edge = job
    architecture = ARCHITECTURES[capability]
    entry = catalog(architecture)[place]
    launch = dict(edges(entry.launch))[edge] if edge else entry.launch
    found = {
        "architecture": architecture.name,
        "kernel": entry.name + (f", {edge}" if edge else ""),
        "same": entry.same,
        "edge": edge,
    }
    try:
        made = compile_launch(launch, architecture)
    except TritonError as error:
        return found | {"order": "none", "broken": [str(error)]}
    fields = dataclasses.asdict(made)
    fields.pop("gpu_ir")
    rules = [*broken(entry, made, architecture), *([] if edge else slow(entry, made))]
    return found | {
        **fields,
        "bytes_per_instruction": bytes_per_instruction(launch, made),
        "order": order(made),
        "broken": rules,
    }


def bytes_per_instruction(launch: Launch, made: Compiled) -> float | None:
    """Bytes of int4 or int8 weights, scales included, that a warp gets through with each
    instruction of the innermost loop; None where that loop is not one over chunks with scales."""
    given = launch.arguments
    if launch.kernel.__name__ != "quantized_product" or given["run_chunks"] is not None:
        return None
    words = 4 * given["BITS"] + CHUNK // given["UNIT"] * given["FIELDS"]
    return 4 * words * given["BN"] / launch.warps / made.loop_instructions


def broken(entry: Entry, made: Compiled, architecture: Architecture) -> Iterator[str]:
    """The rules that every kernel has to keep, whatever its arguments are."""
    if made.shared_bytes > architecture.shared_bytes:
        yield f"{made.shared_bytes} bytes of shared memory of {architecture.shared_bytes}"
    if entry.matrix != bool(made.matrix_instructions):
        yield f"matrix instructions: {made.matrix_instructions}"
    if (found := additions(made.gpu_ir)) < entry.additions:
        yield f"{found} additions of blocks, the tree has {entry.additions}"
    if entry.meets and made.fences > 2:
        yield f"{made.fences} memory barriers: one a sum, and one on giving up, are enough"


def slow(entry: Entry, made: Compiled) -> Iterator[str]:
    """The rules for what a model's shapes give: arguments that 16 divides."""
    if made.local_bytes and not entry.spills:
        yield f"{made.local_bytes} bytes a thread do not fit in registers"
    if made.spilling_loops:
        yield "a loop with matrix instructions touches local memory"
    if entry.meets and (missing := MEETING - set(made.meeting_instructions)):
        yield f"without {', '.join(sorted(missing))}"


def additions(ir: str) -> int:
    """Additions of fp32 blocks that the compiler has left to be additions."""
    return sum("arith.addf" in line and "tensor<" in line for line in ir.splitlines())


def order(made: Compiled) -> list[object]:
    """How products reach the matrix unit, without the width, which follows the rows of a block."""
    names = {re.sub(r"m64n\d+k", "m64k", name) for name in made.matrix_instructions}
    return [*sorted(names), *made.operand_widths]


def main() -> None:
    orders: dict[tuple[str, str], set] = {}
    bad = False
    with ProcessPoolExecutor(2) as pool:
        for one in pool.map(compiled, list(chosen(sys.argv[1]))):
            print(json.dumps(one), flush=True)
            bad |= bool(one["broken"])
            orders.setdefault((one["architecture"], one["same"]), set()).add(str(one["order"]))
    for (architecture, kernel), found in orders.items():
        if len(found) > 1:
            bad = True
            print(f"{architecture} {kernel} adds in {len(found)} orders: {found}", file=sys.stderr)
    sys.exit(int(bad))


if __name__ == "__main__":
    main()
