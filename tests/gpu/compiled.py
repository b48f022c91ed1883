"""Compile kernels for architectures that are not here, and say what the machine code is like.

`python -m tests.gpu.compiled few` for what the test suite looks at, `all` for every kernel in every
configuration of every architecture; one JSON object a kernel. Status 1 if one breaks a rule.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from isobit.kernels.gpu.ahead import Compiled, compile_launch
from isobit.kernels.gpu.architecture import ARCHITECTURES, Architecture
from isobit.kernels.gpu.catalog import Entry, entries

FEW = {
    80: ("int4 group 128 symmetric float16 scales, bfloat16",),
    86: ("",),
    89: ("int4 group 128 symmetric float16 scales, bfloat16",),
    90: ("",),
}


def chosen(which: str) -> Iterator[tuple[int, int]]:
    """Architectures and places in their catalogs; what is there twice counts once."""
    for capability, architecture in ARCHITECTURES.items():
        seen = set()
        for place, entry in enumerate(entries(architecture)):
            if entry.name in seen or (which == "few" and not _few(capability, entry)):
                continue
            seen.add(entry.name)
            yield capability, place


def _few(capability: int, entry: Entry) -> bool:
    if capability in (80, 89):
        return "int4 group 128 symmetric float16 scales, bfloat16" in entry.name
    return entry.basic


def compiled(job: tuple[int, int]) -> dict:
    """What one kernel came to, and the rules that it breaks."""
    architecture = ARCHITECTURES[job[0]]
    entry = list(entries(architecture))[job[1]]
    made = compile_launch(entry.launch, architecture)
    fields = dataclasses.asdict(made)
    fields.pop("gpu_ir")
    return {
        "architecture": architecture.name,
        "kernel": entry.name,
        "same": entry.same,
        **fields,
        "broken": list(broken(entry, made, architecture)),
    }


def broken(entry: Entry, made: Compiled, architecture: Architecture) -> Iterator[str]:
    """The rules that every kernel has to keep."""
    if made.shared_bytes > architecture.shared_bytes:
        yield f"{made.shared_bytes} bytes of shared memory, {architecture.shared_bytes} there are"
    if made.local_bytes and not entry.spills:
        yield f"{made.local_bytes} bytes a thread do not fit in registers"
    if made.spilling_loops:
        yield "a loop over k touches local memory"
    wanted = "wgmma" if architecture.capability == 90 and entry.wide else "mma.sync"
    kinds = {name.split(".")[0] for name in made.matrix_instructions}
    if entry.matrix and kinds != {wanted.split(".")[0]}:
        yield f"matrix instructions {made.matrix_instructions}, wanted {wanted}"
    if (found := additions(made.gpu_ir)) < entry.additions:
        yield f"{found} additions of whole blocks, {entry.additions} in the tree"


def additions(ir: str) -> int:
    """Additions of fp32 tensors that are left to be additions."""
    return sum("arith.addf" in line and "tensor<" in line for line in ir.splitlines())


def orders(found: Iterable[dict]) -> dict[tuple[str, str], set]:
    """By kernel the ways in which its blocks hand products to the matrix unit: one, or bits
    would depend on the number of rows."""
    ways: dict[tuple[str, str], set] = {}
    for one in found:
        instructions = tuple(name.split("n", 1)[0] for name in depths(one["matrix_instructions"]))
        way = (instructions, tuple(one["operand_widths"]))
        ways.setdefault((one["architecture"], one["same"]), set()).add(way)
    return ways


def depths(names: Iterable[str]) -> set[str]:
    """Matrix instructions without the width that follows the rows of a block."""
    import re

    return {re.sub(r"m64n\d+k", "m64k", name) for name in names}


def main() -> None:
    jobs = list(chosen(sys.argv[1]))
    os.environ.pop("TRITON_INTERPRET", None)
    bad = False
    with ProcessPoolExecutor(2) as pool:
        found = []
        for one in pool.map(compiled, jobs):
            print(json.dumps(one), flush=True)
            bad |= bool(one["broken"])
            found.append(one)
    parted = {key: ways for key, ways in orders(found).items() if len(ways) > 1}
    for key, ways in parted.items():
        print(f"{key}: blocks add in different orders: {ways}", file=sys.stderr)
    sys.exit(int(bad or bool(parted)))


if __name__ == "__main__":
    main()
