"""Step time and memory of published models on 1 to 64 cards, from the planner and stated speeds.

    python -m bench.scale [--model NAME]... [--cards 1,2,3] [--workload "decode 16"] [--json]
    python -m bench.scale --print-links > my.json
    python -m bench.scale --links my.json
    python -m bench.scale --plots docs/measurements

Nothing is measured: plans, memory and messages are those of `isobit plan`; speeds of cards and
links are stated in bench/scale/machines.py or in the file of --links. Tensor parallel only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from isobit.errors import InputError
from isobit.shard.estimate.fit import LAYOUTS

from . import calibration, plan_tables, tables
from .machines import MACHINES, Machines, read_machines
from .models import Model, chosen, read_models
from .sum_costs import sum_costs
from .sweep import DEGREES, WORKLOADS, Sweep, sweep


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", action="append", default=[], help="only this one; repeat it")
    parser.add_argument("--cards", type=_cards, default=DEGREES, help="as in 1,2,3,4")
    parser.add_argument("--workload", choices=[w.name for w in WORKLOADS], default="decode 1")
    parser.add_argument("--atoms", type=int, help="for all; 8, or the fewest that are enough")
    parser.add_argument("--layout", choices=LAYOUTS, default="pad")
    parser.add_argument(
        "--collectives",
        choices=("custom", "gather"),
        default="custom",
        help="own kernels in one box and the library over several, or the library alone",
    )
    parser.add_argument("--quantization", choices=("int4", "int8", "none"), default="int4")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--links", type=Path, help="JSON with cards, links, clusters, assumptions")
    parser.add_argument("--print-links", action="store_true", help="print those in use and stop")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the pictures as well")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    return parser.parse_args()


def _cards(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, as in 1,2,3") from None


def main() -> int:
    options = arguments()
    try:
        machines = MACHINES if options.links is None else read_machines(options.links)
        if options.print_links:
            print(json.dumps(dataclasses.asdict(machines), indent=1))
            return 0
        models = chosen(read_models(options.quantization, options.group_size), options.model)
        found = sweep(models, machines, options.cards, options.layout, options.atoms)
    except InputError as error:
        print(f"{error.code} {error.message}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(tables.report(found, machines, sum_costs(machines))))
    else:
        _print(options, models, machines, found)
    if options.plots is not None:
        from .plots import draw

        for path in draw(found.rows, options.plots):
            print(path, file=sys.stderr)
    return 0


def _print(
    options: argparse.Namespace, models: list[Model], machines: Machines, found: Sweep
) -> None:
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=140)

    def show(table: Table) -> None:
        """Print the title as a line of its own: rich would break it to the table's width."""
        console.print(table.title, style="bold", soft_wrap=True)
        table.title = None
        console.print(table)

    gather = options.collectives == "gather"
    for cluster in machines.clusters:
        show(tables.time_table(found, options.cards, cluster.name, options.workload, gather))
    console.print(
        "bold: the fastest that fits; (…): more memory than the cards have; a word: no plan\n"
    )
    show(tables.fastest_table(found, gather))
    for message in dict.fromkeys(f"{i.code} {i.message}" for i in found.impossible):
        where = [i for i in found.impossible if f"{i.code} {i.message}" == message]
        cards = ", ".join(dict.fromkeys(str(i.degree) for i in where))
        names = list(dict.fromkeys(i.model for i in where))
        shown = "every model" if names == found.models else ", ".join(names)
        text = f"no plan for {shown} on {cards} cards: {message}"
        console.print(text, markup=False, soft_wrap=True)
    cut = plan_tables.Cut(layout=options.layout, atoms=options.atoms)
    show(plan_tables.memory_table(models, machines, cut))
    show(plan_tables.room_table(models, machines, cut))
    show(plan_tables.padding_table(models))
    show(plan_tables.balance_table())
    show(tables.sum_table(sum_costs(machines)))
    show(tables.calibration_table(calibration.compare()))


if __name__ == "__main__":
    sys.exit(main())
