"""Tables of what the planner says: memory, room, padding, balance. No speed is in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rich.table import Table

from isobit.errors import InputError
from isobit.shard.plan.atoms import atoms_of_rank, complete_subtrees
from isobit.shard.plan.plan import MOST_ATOMS, Layout, PlanSettings, check_settings

from .machines import Machines
from .models import Model
from .sweep import GIB, Planned, planned

CONTEXT = 4096
"""Tokens that a model must have room for where memory is compared."""
SHOWN = (1, 2, 3, 4, 6, 8, 16, 32, 64)
ATOMS = (8, 16, 32, 64)
UNEVEN = (3, 5, 6, 7, 12, 24, 48)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How models are to be cut, as in `planned`."""

    layout: Layout = "pad"
    atoms: int | None = None

    def of(self, model: Model, degree: int) -> Planned:
        return planned(model, degree, self.layout, self.atoms)


def fewest_cards(model: Model, gib: float, share: float, cut: Cut) -> int | None:
    """The fewest cards that hold a model and one sequence of 4096 tokens; None when 64 do not."""
    for degree in range(1, (cut.atoms or MOST_ATOMS) + 1):
        if cut.of(model, degree).needed(CONTEXT, 1) <= gib * GIB * share:
            return degree
    return None


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def short(code: str) -> str:
    """The end of a code, so that it fits into a column of numbers."""
    return code.removeprefix("E-PLAN-")


def _or_code(cell: Callable[[], str]) -> str:
    """What a cell says, or the code of the planner's error."""
    try:
        return cell()
    except InputError as error:
        return short(error.code)


def memory_table(models: list[Model], machines: Machines, cut: Cut) -> Table:
    """GiB of the fullest rank, and how few cards are enough."""
    share = machines.assumptions.memory_share
    table = _table(
        f"GiB of the fullest card with one sequence of {CONTEXT} tokens; fewest cards at {share:g}",
        "model",
        *map(str, SHOWN),
        *(card.name for card in machines.cards),
    )

    def needed(model: Model, degree: int) -> str:
        return f"{cut.of(model, degree).needed(CONTEXT, 1) / GIB:.1f}"

    def fewest(model: Model, gib: float) -> str:
        found = fewest_cards(model, gib, share, cut)
        return "none" if found is None else str(found)

    for model in models:
        cells = [_or_code(partial(needed, model, degree)) for degree in SHOWN]
        cells += [_or_code(partial(fewest, model, card.gib)) for card in machines.cards]
        table.add_row(model.name, *cells)
    return table


def room_table(models: list[Model], machines: Machines, cut: Cut) -> Table:
    """How many sequences of 4096 tokens fit at once, on the first card of the machines."""
    card, share = machines.cards[0], machines.assumptions.memory_share
    table = _table(
        f"sequences of {CONTEXT} tokens at once, {card.name} ({card.gib:g} GiB)",
        "model",
        *map(str, SHOWN),
    )

    def room(model: Model, degree: int) -> str:
        found = cut.of(model, degree).fit(card, share, CONTEXT)
        return str(found.sequences) if found.fits else ""

    for model in models:
        table.add_row(model.name, *(_or_code(partial(room, model, degree)) for degree in SHOWN))
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

    def padding(model: Model, atoms: int, layout: Layout) -> str:
        return f"{planned(model, atoms, layout, atoms).padding:.1%}"

    def idle(model: Model, atoms: int) -> str:
        return str(planned(model, atoms, "pad", atoms).idle or "")

    for model in models:
        cells = [_or_code(partial(padding, model, atoms, "pad")) for atoms in ATOMS]
        cells += [_or_code(partial(padding, model, atoms, "ragged")) for atoms in (8, 64)]
        cells += [_or_code(partial(idle, model, atoms)) for atoms in (32, 64)]
        table.add_row(model.name, *cells)
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
        cells = (_or_code(partial(_balance, degree, atoms)) for atoms in ATOMS)
        table.add_row(str(degree), *cells)
    return table


def _balance(degree: int, atoms: int) -> str:
    check_settings(PlanSettings(degree=degree, atoms=atoms))
    owned = [atoms_of_rank(atoms, degree, rank) for rank in range(degree)]
    most = max(len(own) for own in owned)
    nodes = max(len(complete_subtrees(atoms, own)) for own in owned)
    return f"{most * degree / atoms:.2f}, {nodes}"
