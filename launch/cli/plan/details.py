"""What `isobit plan` says in words, and what --explain adds: layouts, traffic, formulas."""

from __future__ import annotations

from ....shard.estimate.explain import STEPS, Explanation
from ....shard.estimate.fit import Fit, Option
from ....shard.model.spec import DTYPES
from ..output import console
from .tables import Unit, outcome, percent, print_table, size, table

FORMULAS = """\
weights    tiles of 64 columns, ceil(N / 64) of them; bits / 8 bytes per column
           and packed K; a row of scales (and zero points) per run, which is a
           group or an atom's part of one; tables: 4 bytes per run and atom, and
           4 per packed K where activations are not taken in their order
padding    bytes of weights over what they would be without padded features
KV cache   2 x layers x KV heads of the rank x head size x {width} bytes per token, in
           pages of 64 tokens
workspace  the buffers of a step of {rows} rows, and the rotary tables
  a row    4 H + 2 e H + 4 (q + 2 kv) + 2 e q + (8 + e) I + 4 H nodes; above one
           rank also e H tp + 4 H (1 + most nodes x tp + max(most nodes, 1 + log2(
           all atoms over those of the smallest node))), and 4 H most nodes more on
           ranks with fewer
  sampled  4 H + e H + 4 (most V x (1 + tp) + all V)
  kept     2 layers e H
  rotary   4 x positions x head size
           T rows, L of them sampled, H hidden size, e = {width} bytes; q, kv, I and
           V: query, KV, intermediate and vocabulary features of the rank;
           nodes: its complete subtrees. At tp 1, (1 + tp) is 1
balance    weights of the fullest rank over the mean
context    the longest single sequence whose pages fit on every rank"""


def print_details(found: Explanation) -> None:
    """Both layouts at this degree, the bytes on the wire, and how the numbers were made."""
    _print_layouts(found)
    _print_traffic(found)
    if len(found.hosts) > 1:
        _print_host_traffic(found)
    width = DTYPES[found.model.dtype].itemsize
    console.print("\nhow the numbers are made", style="italic")
    console.print(FORMULAS.format(width=width, rows=found.model.step_rows), style="dim")


def _print_layouts(found: Explanation) -> None:
    options = found.chosen_degree()
    unit, given = Unit(max(o.weights for o in options)), found.budget is not None
    shown = table(
        *("layout", "MLP size", "weights", "padding", "balance"),
        *(["context", "sequences", "*verdict"] if given else ["total", "*works"]),
        title=f"both layouts at tp {found.plan.degree}, fullest rank, {unit.name}",
    )
    for o in options:
        name = f"[bold]> {o.layout}[/]" if o.layout == found.plan.layout else o.layout
        row = [str(o.intermediate), unit(o.weights), percent(o.padding), f"{o.balance:.2f}"]
        shown.add_row(name, *(row if o.why_not is None else [""] * 4), *outcome(o, given, unit))
    print_table(shown)


def _print_traffic(found: Explanation) -> None:
    traffic = found.traffic
    if traffic.degree == 1:
        console.print("\nOne rank sends nothing.", style="dim")
        return
    names = {
        "embed_tokens": "embedding rows",
        "o_proj": "o_proj nodes",
        "down_proj": "down_proj nodes",
        "lm_head": "logits",
    }
    steps = [f"T = {rows}" for rows, _ in STEPS.values()]
    shown = table(
        *("gathered", "per step", "*message", "*dtype"),
        *steps,
        title="sent by each rank in a step of T rows, and received as much",
    )
    for message in traffic.messages:
        shown.add_row(
            names[message.site],
            str(message.count),
            " x ".join(map(str, message.shape)),
            message.dtype,
            *(size(traffic.sent(message, *rows)) for rows in STEPS.values()),
        )
    shown.add_row("all", "", "", "", *(size(traffic.total(*rows)) for rows in STEPS.values()))
    print_table(shown)
    nodes = " ".join(map(str, traffic.nodes))
    console.print(
        f"T rows, L of them sampled (1 here). Tree nodes of each rank: {nodes}; those with fewer "
        "fill up with zeros.",
        style="dim",
    )


def _print_host_traffic(found: Explanation) -> None:
    steps = [f"T = {rows}" for rows, _ in STEPS.values()]
    shown = table(
        *("host", "*ranks", "nodes", *steps), title="sent by each host to all others in a step"
    )
    for host, (ranks, sent) in enumerate(zip(found.hosts, found.host_traffic, strict=True)):
        total = (size(sent.total(*rows)) for rows in STEPS.values())
        shown.add_row(str(host), " ".join(map(str, ranks)), str(sent.nodes[0]), *total)
    print_table(shown)
    console.print(
        "Inside a host ranks share memory. The first rank of each host sends, by --all-reduce "
        "hierarchical, which auto takes.",
        style="dim",
    )


def print_verdict(found: Explanation) -> None:
    """One sentence: fits or does not, by how much, and what would."""
    console.print()
    if found.fit is None or found.budget is None:
        fullest = max(rank.total(found.length) for rank in found.ranks)
        console.print(
            f"One sequence of {found.length} tokens takes [bold]{size(fullest)}[/] on the fullest "
            "rank. Give --gpu-memory GIB for a verdict."
        )
    elif found.fit.fits:
        console.print(_fits(found, found.fit))
    else:
        console.print(_does_not_fit(found, found.fit))
    if (other := _other_layout(found)) is not None:
        console.print(other, style="dim")


def _fits(found: Explanation, fit: Fit) -> str:
    many = "one sequence" if fit.sequences == 1 else f"{fit.sequences} sequences"
    most = " (the most of this model)" if fit.context == found.model.spec.max_positions else ""
    longer = f", or one of up to {fit.context}" if fit.context > fit.length else ""
    left = f"{size(-fit.short_by)} are left on rank {fit.rank}, the tightest"
    return (
        f"[bold green]fits[/] in {_memory(found)}: {many} of {fit.length} tokens{longer}{most}. "
        f"With one of {fit.length}, {left}."
    )


def _does_not_fit(found: Explanation, fit: Fit) -> str:
    text = (
        f"[bold red]does not fit[/]: rank {fit.rank} lacks {size(fit.short_by)} for one sequence "
        f"of {fit.length} tokens in {_memory(found)}."
    )
    ways = [_way(found, option) for option in found.ways_out]
    if fit.context:
        ways.append(f"--max-model-len {fit.context} fits at this size")
    if ways:
        return text + "\nWhat would fit:\n  " + "\n  ".join(ways)
    known = [o for o in found.options if o.fit is not None]
    best = min(known, key=lambda o: o.fit.short_by if o.fit else 0)
    assert best.fit is not None
    return (
        f"{text}\nNo tp up to {max(o.degree for o in known)} fits in either layout; tp "
        f"{best.degree} with layout {best.layout} comes closest and lacks "
        f"{size(best.fit.short_by)}."
    )


def _way(found: Explanation, option: Option) -> str:
    layout = "" if option.layout == found.plan.layout else f" --layout {option.layout}"
    assert option.fit is not None
    return (
        f"-tp {option.degree}{layout}: {size(option.weights)} of weights on the fullest rank, "
        f"{option.fit.sequences} x {option.fit.length} tokens"
    )


def _memory(found: Explanation) -> str:
    assert found.budget is not None
    gib, share = found.budget.gib, found.budget.utilization
    each = " + ".join(f"{value:g}" for value in gib[: found.plan.degree])
    return f"{share:g} of {each} GiB" + (" per rank" if len(gib) == 1 else "")


def _other_layout(found: Explanation) -> str | None:
    """What the other layout would change, where it changes anything."""
    options = {o.layout: o for o in found.chosen_degree() if o.why_not is None}
    here = options.pop(found.plan.layout)
    for there in options.values():
        if there.intermediate != here.intermediate:
            return (
                f"Layout {there.layout} would cut {there.intermediate} instead of "
                f"{here.intermediate}: {size(there.weights)} of weights on the fullest rank "
                f"({100 * (there.weights / here.weights - 1):+.1f}%)."
            )
    return None
