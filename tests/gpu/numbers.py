"""Numbers of the CUDA path that compiling and counting give without a card: tables of docs/gpu.md.

`python -m tests.gpu.numbers` compiles what they need and prints them; `--write` puts them into the
document. `tests/gpu/ahead_of_time/test_compiled.py` and `test_numbers.py` compare.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.launches import Launches, decode_step, launches, prefill_step
from bench.shape import SHAPE
from isobit.kernels.gpu.architecture import ARCHITECTURES
from isobit.kernels.gpu.table import BLOCKS
from isobit.kernels.step.step import Step
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.atoms import complete_subtrees
from isobit.shard.plan.plan import PlanSettings, make_plan

from .ahead_of_time.compiled import SHARED, catalog, compiled

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"
SHOWN = (86, 90)
SIZES = (1, 2, 3, 4, 8)


def product_table(made: list[dict]) -> str:
    """The blocks of int4 products, from what `compiled` says of them."""
    lines = [
        "| | rows | block | registers | spilled | shared | instructions a chunk | weight bytes an "
        "instruction | each weight unpacked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for capability in SHOWN:
        least = 1
        for blocks in BLOCKS[capability]:
            for block in filter(None, (blocks.wide, blocks.narrow)):
                looped = ", loop" if block.loop else ""
                name = f"{SHARED}, blocks of {block.rows} x {block.columns}{looped}"
                one = found(made, capability, name)
                rows = f"{least}-{blocks.rows}" if blocks.rows < 1 << 30 else f"{least}-"
                how = f"{block.rows} x {block.columns}, {block.warps} warps{looped}"
                how += ", narrow" if block is blocks.narrow else ""
                lines.append(
                    f"| {one['architecture']} | {rows} | {how} | {one['registers']} | "
                    f"{one['local_bytes']} | {one['shared_bytes'] / 1000:.0f} KB | "
                    f"{one['loop_instructions']} | {one['bytes_per_instruction']:.2f} | "
                    f"{'once' if one['unpacked'] == 1 else 'twice'} |"
                )
            least = blocks.rows + 1
    return "\n".join(lines)


def found(made: list[dict], capability: int, name: str) -> dict:
    """A kernel at its own arguments."""
    return next(
        one
        for one in made
        if one["architecture"] == f"sm_{capability}" and one["kernel"] == name and not one["edge"]
    )


def launch_table() -> str:
    """Kernels of a layer by tensor-parallel size, on the rank that starts most."""
    steps = {
        "decode, 512 tokens in the cache": decode_step(1, 512),
        "decode, more": decode_step(1, 1024),
        "65 rows and more": prefill_step(512, sampled=True),
    }
    lines = ["| tp | " + " | ".join(steps) + " | beside the layers |", "|---" * 5 + "|"]
    for size in SIZES:
        counted = [most_launches(size, step) for step in steps.values()]
        cells = [size, *(each.layer for each in counted), counted[0].rest]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def most_launches(size: int, step: Step) -> Launches:
    """On the rank with the most nodes of the tree."""
    spec = spec_from_config({**SHAPE, "tie_word_embeddings": False}, None)
    plan = make_plan(spec, PlanSettings(degree=size))
    rank = max(range(size), key=lambda r: len(complete_subtrees(plan.atoms, plan.owned(r))))
    return launches(spec, plan, rank, step)


def section(text: str, name: str) -> str:
    """What stands between the markers of a table in the document."""
    return text.partition(marker(name))[2].partition(END)[0].strip("\n")


def written(text: str, name: str, table: str) -> str:
    """The document with another table between the markers."""
    before, mark, rest = text.partition(marker(name))
    assert mark, f"docs/gpu.md has no table {name}"
    return f"{before}{mark}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


END = "<!-- end -->"


def marker(name: str) -> str:
    return f"<!-- {name}: python -m tests.gpu.numbers --write -->"


def main() -> None:
    made = [
        compiled((capability, place, ""))
        for capability in SHOWN
        for place, entry in enumerate(catalog(ARCHITECTURES[capability]))
        if entry.same == SHARED
    ]
    tables = {"blocks": product_table(made), "launches": launch_table()}
    if "--write" in sys.argv:
        text = DOCUMENT.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = written(text, name, table)
        DOCUMENT.write_text(text, encoding="utf-8")
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
