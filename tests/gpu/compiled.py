"""Compile kernels for architectures that are not here, and say what the machine code is like.

`python -m tests.gpu.compiled few` for what the test suite looks at, `all` for every kernel in every
configuration of every architecture. One line of JSON a kernel; status 1 if one breaks a rule.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from isobit.kernels.gpu.ahead import Compiled, compile_launch
from isobit.kernels.gpu.architecture import ARCHITECTURES, Architecture
from isobit.kernels.gpu.catalog import Entry, entries

catalog = cache(entries)
MEETING = {
    "bar.sync",
    "st.release.sys.global.b64",
    "ld.acquire.sys.global.b64",
    "ld.volatile.global.v4.b32",
}
SHARED = "quantized_product: int4 group 128 symmetric float16 scales, bfloat16"


def chosen(which: str) -> Iterator[tuple[int, int]]:
    """Architectures, and places in their catalogs."""
    for capability, architecture in ARCHITECTURES.items():
        for place, entry in enumerate(catalog(architecture)):
            if which == "all" or _few(capability, entry):
                yield capability, place


def _few(capability: int, entry: Entry) -> bool:
    if capability in (80, 89):  # the instructions of 86
        return entry.same == SHARED and (entry.spills or "blocks of 16" in entry.name)
    return entry.basic and (entry.matrix or capability == 90)


def compiled(job: tuple[int, int]) -> dict:
    """What one kernel came to, and the rules that it breaks."""
    architecture = ARCHITECTURES[job[0]]
    entry = catalog(architecture)[job[1]]
    made = compile_launch(entry.launch, architecture)
    fields = dataclasses.asdict(made)
    fields.pop("gpu_ir")
    return {
        "architecture": architecture.name,
        "kernel": entry.name,
        "same": entry.same,
        **fields,
        "order": order(made),
        "broken": list(broken(entry, made, architecture)),
    }


def broken(entry: Entry, made: Compiled, architecture: Architecture) -> Iterator[str]:
    """The rules that every kernel has to keep."""
    if made.shared_bytes > architecture.shared_bytes:
        yield f"{made.shared_bytes} bytes of shared memory of {architecture.shared_bytes}"
    if made.local_bytes and not entry.spills:
        yield f"{made.local_bytes} bytes a thread do not fit in registers"
    if made.spilling_loops:
        yield "a loop with matrix instructions touches local memory"
    if entry.matrix != bool(made.matrix_instructions):
        yield f"matrix instructions: {made.matrix_instructions}"
    if entry.meets and (missing := MEETING - set(made.meeting_instructions)):
        yield f"without {', '.join(sorted(missing))}"
    if (found := additions(made.gpu_ir)) < entry.additions:
        yield f"{found} additions of blocks, the tree has {entry.additions}"


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
