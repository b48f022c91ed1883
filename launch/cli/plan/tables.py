"""The tables of `isobit plan`: for a terminal of 80 columns and up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ....shard.estimate.explain import Explanation
from ....shard.estimate.fit import Option
from ....shard.formats.scheme import CHANNEL
from ....shard.model.spec import ModelSpec
from ....shard.plan.plan import Dimension
from ..output import console

MOST_ROWS = 16
MOST_SIZES = 8


def print_plan(found: Explanation) -> None:
    """What is cut where, memory per rank, and every degree."""
    plan = found.plan
    console.print(f"[bold]{_model_name(found.model.spec)}[/]")
    console.print(
        f"tp {plan.degree}, layout {plan.layout}, plan {plan.content_hash()}", style="dim"
    )
    spec = found.model.spec
    if (line := spec.rotary.line(spec.max_positions)) is not None:
        console.print(line)
    _print_dimensions(found)
    _print_weights(found)
    _print_memory(found)
    _print_degrees(found)


def _model_name(spec: ModelSpec) -> str:
    weights = spec.dtype
    if spec.quantization is not None:
        schemes = [rule.scheme for rule in spec.quantization.rules if rule.scheme is not None]
        kinds = []
        for scheme in schemes:
            width = "channel" if scheme.group_size == CHANNEL else f"group {scheme.group_size}"
            kinds.append(f"int{scheme.bits} {width}")
        weights = f"{spec.quantization.method} {' and '.join(dict.fromkeys(kinds))}"
    return f"{spec.family}, {spec.layers} layers, hidden {spec.hidden_size}, {weights}"


def _print_dimensions(found: Explanation) -> None:
    plan = found.plan
    shown = table("dimension", "true", "padded", "unit", "*atoms, in units", "*per rank")
    for name in ("intermediate", "heads", "vocab"):
        dimension: Dimension = getattr(plan, name)
        owned = [dimension.slice(plan.owned(rank)).size for rank in range(plan.degree)]
        grew = dimension.padded != dimension.true
        shown.add_row(
            name,
            str(dimension.true),
            f"[bold]{dimension.padded}[/]" if grew else str(dimension.padded),
            str(dimension.unit),
            _sizes([-(-atom // dimension.unit) for atom in dimension.atom_sizes]),
            _sizes(owned),
        )
    print_table(shown)


def _print_weights(found: Explanation) -> None:
    """Columns that are zero on every rank are left out."""
    names = {
        "codes": "codes",
        "scales": "scales",
        "tables": "tables",
        "dense": "dense",
        "embeddings": "tied embed" if found.model.spec.tied_embeddings else "embed, head",
        "replicated": "replicated",
    }
    weights = [rank.weights for rank in found.ranks]
    kept = [n for n in names if any(getattr(each, n) for each in weights)]
    unit = Unit(max(each.total for each in weights))
    shown = table(
        "rank",
        *(names[n] for n in kept),
        "total",
        "padding",
        title=f"weights of each rank, {unit.name}",
    )
    rows = []
    for rank in found.ranks:
        parts = (unit(getattr(rank.weights, n)) for n in kept)
        rows.append((*parts, unit(rank.weights.total), percent(rank.padding)))
    _add_ranks(shown, rows)
    if found.plan.degree > 1:
        sums = (sum(getattr(each, n) for each in weights) for n in kept)
        total = sum(each.total for each in weights)
        shown.add_row("all", *map(unit, sums), unit(total), percent(found.padding))
    print_table(shown)


def _print_memory(found: Explanation) -> None:
    length, budget = found.length, found.budget
    limits = None if budget is None else budget.limits(found.plan.degree)
    unit = Unit(max(rank.total(length) for rank in found.ranks))
    shown = table(
        "rank",
        "KV heads",
        "KiB/token",
        *("KV cache", "workspace", "weights", "total"),
        *(["usable", "left"] if limits else []),
        title=f"memory of each rank with one sequence of {length} tokens, {unit.name}",
    )
    rows = []
    for rank in found.ranks:
        heads, total = found.plan.kv_heads(rank.rank), rank.total(length)
        row = [
            _kept(heads, found.plan.degree),
            kib(rank.kv_per_token),
            unit(rank.kv(length)),
            unit(rank.rotary + rank.step.total(1)),
            unit(rank.weights.total),
            unit(total),
        ]
        if limits:
            left = limits[rank.rank] - total
            row += [unit(limits[rank.rank]), unit(left) if left >= 0 else f"[red]{unit(left)}[/]"]
        rows.append(tuple(row))
    _add_ranks(shown, rows)
    print_table(shown)
    for note in _notes(found):
        console.print(note, style="dim")


def _notes(found: Explanation) -> list[str]:
    plan, notes = found.plan, []
    kept = [plan.kv_heads(rank) for rank in range(plan.degree)]
    times = Counter(head for heads in kept for head in heads)
    if shared := sum(count > 1 for count in times.values()):
        notes.append(f"{shared} of {len(times)} KV heads are kept by more than one rank.")
    if idle := sum(not each for each in kept):
        ranks = "1 rank owns no head and adds" if idle == 1 else f"{idle} ranks own no head and add"
        notes.append(f"{ranks} exact zeros in attention.")
    if not found.model.exact:
        notes.append("act-order: bytes of o_proj are an upper bound, they depend on g_idx.")
    return notes


def _print_degrees(found: Explanation) -> None:
    options = found.chosen_layout()
    if len(options) > MOST_ROWS:
        few = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, found.plan.degree}
        few |= {way.degree for way in found.ways_out}
        options = [o for o in options if o.degree in few]
    unit = Unit(max(o.weights for o in options))
    given = found.budget is not None
    shown = table(
        *("tp", "weights", "balance", "KiB/token", "no head"),
        *(["context", "sequences", "*verdict"] if given else ["total", "*works"]),
        title=f"fullest rank at every tp, layout {found.plan.layout}, {unit.name}",
    )
    for o in options:
        name = f"[bold]> {o.degree}[/]" if o.degree == found.plan.degree else str(o.degree)
        row = [unit(o.weights), f"{o.balance:.2f}", kib(o.kv_per_token), str(o.idle_ranks or "-")]
        shown.add_row(name, *(row if o.why_not is None else [""] * 4), *outcome(o, given, unit))
    print_table(shown)


def outcome(option: Option, given: bool, unit: Unit) -> list[str]:
    """Context, sequences and verdict of an option where memory was given; its total elsewhere."""
    if option.why_not is not None:
        return ["", *([""] * given), f"no: {option.why_not}"]
    if not given:
        return [unit(option.needed), "yes"]
    if option.fit is None:
        return ["", "", "memory not given"]
    verdict = "[green]fits[/]" if option.fit.fits else f"[red]lacks {size(option.fit.short_by)}[/]"
    return [str(option.fit.context), str(option.fit.sequences), verdict]


def table(*columns: str, title: str | None = None) -> Table:
    """A table without vertical lines; a column is right-aligned unless its name begins with *."""
    shown = Table(title=title, title_justify="left", title_style="italic", box=SIMPLE_HEAD)
    shown.show_edge, shown.pad_edge, shown.padding = False, False, (0, 1, 0, 0)
    for number, name in enumerate(columns):
        left = number == 0 or name.startswith("*")
        shown.add_column(
            name.removeprefix("*"), justify="left" if left else "right", overflow="fold"
        )
    return shown


def print_table(shown: Table) -> None:
    console.print()
    console.print(shown)


class Unit:
    """The unit in which a table shows bytes, chosen by its largest number."""

    def __init__(self, largest: float) -> None:
        names = ("bytes", "KiB", "MiB", "GiB", "TiB")
        power = next((p for p in range(len(names)) if largest < 1000 * 1024**p), len(names) - 1)
        self.name, self.bytes = names[power], 1024**power

    def __call__(self, count: float) -> str:
        """Two digits behind the point."""
        if self.bytes == 1 or not count:
            return f"{count:.0f}"
        value = count / self.bytes
        return "<0.01" if 0 < value < 0.005 else f"{value:.2f}"


def size(count: float) -> str:
    """Bytes with a unit of their own: "9.63 GiB"."""
    unit = Unit(abs(count))
    return f"{unit(count)} {unit.name}"


def kib(count: int) -> str:
    return f"{count / 1024:g}"


def percent(share: float) -> str:
    if not share:
        return "-"
    return "<0.01%" if share < 5e-5 else f"{100 * share:.2f}%"


def _add_ranks(shown: Table, rows: Sequence[tuple[str, ...]]) -> None:
    """Ranks in a row that show the same numbers share a line."""
    first = 0
    for row, run in groupby(rows):
        last = first + len(list(run)) - 1
        shown.add_row(_span(first, last), *row)
        first = last + 1


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _kept(heads: range, degree: int) -> str:
    """Which KV heads, or how many where there are many ranks."""
    if degree > MOST_SIZES or not heads:
        return str(len(heads) or "none")
    return _span(heads.start, heads.stop - 1)


def _sizes(sizes: Sequence[int]) -> str:
    if len(set(sizes)) == 1:
        return str(sizes[0]) if len(sizes) == 1 else f"{len(sizes)} x {sizes[0]}"
    if len(sizes) > MOST_SIZES:
        return f"{len(sizes)} of {min(sizes)} to {max(sizes)}"
    return " ".join(map(str, sizes))
