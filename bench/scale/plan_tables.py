"""Tables of what the planner says: memory, room, padding, balance. No speed is in them."""

from __future__ import annotations

from isobit.kernels.errors import InputError
from isobit.shard.atoms import atoms_of_rank, complete_subtrees
from isobit.shard.plan import Layout, PlanSettings, check_settings
from rich.table import Table

from .machines import Machines
from .models import Model
from .sweep import DEGREES, GIB, Planned, planned

CONTEXT = 4096
"""Tokens that a model must have room for where memory is compared."""
SHOWN = (1, 2, 3, 4, 6, 8, 16, 32, 64)
ATOMS = (8, 16, 32, 64)
UNEVEN = (3, 5, 6, 7, 12, 24, 48)


def fewest_cards(model: Model, gib: float, share: float, layout: Layout) -> Planned | None:
    """The fewest cards that hold a model and one sequence of 4096 tokens; None above 64."""
    for degree in range(1, DEGREES[-1] + 1):
        cut = planned(model, degree, layout)
        if cut.needed(CONTEXT, 1) <= gib * GIB * share:
            return cut
    return None


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def memory_table(models: list[Model], machines: Machines, layout: Layout) -> Table:
    """GiB of the fullest rank, and how few cards are enough."""
    share = machines.assumptions.memory_share
    table = _table(
        f"GiB of the fullest card with one sequence of {CONTEXT} tokens; fewest cards at {share:g}",
        "model",
        *map(str, SHOWN),
        *(card.name for card in machines.cards),
    )
    for model in models:
        try:
            cells = [f"{planned(model, n, layout).needed(CONTEXT, 1) / GIB:.1f}" for n in SHOWN]
            for card in machines.cards:
                least = fewest_cards(model, card.gib, share, layout)
                cells.append("> 64" if least is None else str(least.plan.degree))
        except InputError as error:
            cells = [error.code]
        table.add_row(model.name, *cells)
    return table


def room_table(models: list[Model], machines: Machines, layout: Layout) -> Table:
    """How many sequences of 4096 tokens fit at once, on the first card of the machines."""
    card, share = machines.cards[0], machines.assumptions.memory_share
    table = _table(
        f"sequences of {CONTEXT} tokens at once, {card.name} ({card.gib:g} GiB)",
        "model",
        *map(str, SHOWN),
    )
    for model in models:
        try:
            fits = [planned(model, n, layout).fit(card, share, CONTEXT) for n in SHOWN]
            cells = [str(found.sequences) if found.fits else "" for found in fits]
        except InputError as error:
            cells = [error.code]
        table.add_row(model.name, *cells)
    return table


def padding_table(models: list[Model]) -> Table:
    """What padding adds to the weights by the number of atoms, and who has no head to compute."""
    table = _table(
        "bytes that padding adds to all weights; ranks without a head at one atom a rank",
        "model",
        *(f"pad, {atoms} atoms" for atoms in ATOMS),
        "ragged, 8",
        "ragged, 64",
        "idle of 32",
        "idle of 64",
    )
    for model in models:
        try:
            cuts = [planned(model, atoms, "pad", atoms) for atoms in ATOMS]
            cuts += [planned(model, atoms, "ragged", atoms) for atoms in (8, 64)]
        except InputError as error:
            table.add_row(model.name, error.code)
            continue
        idle = [str(cut.idle or "") for cut in cuts[2:4]]
        table.add_row(model.name, *(f"{cut.padding:.1%}" for cut in cuts), *idle)
    return table


def balance_table() -> Table:
    """Atoms of the fullest rank over the mean, and the nodes that a rank sends, by both numbers.

    These depend on nothing but the two numbers; errors are the planner's.
    """
    table = _table(
        "atoms of the fullest rank over the mean, and nodes that a rank sends",
        "cards",
        *(f"{atoms} atoms" for atoms in ATOMS),
    )
    for degree in UNEVEN:
        cells = []
        for atoms in ATOMS:
            try:
                check_settings(PlanSettings(degree=degree, atoms=atoms))
            except InputError as error:
                cells.append(error.code)
                continue
            cells.append(_balance(degree, atoms))
        table.add_row(str(degree), *cells)
    return table


def _balance(degree: int, atoms: int) -> str:
    owned = [atoms_of_rank(atoms, degree, rank) for rank in range(degree)]
    most = max(len(own) for own in owned)
    nodes = max(len(complete_subtrees(atoms, own)) for own in owned)
    return f"{most * degree / atoms:.2f}, {nodes}"
