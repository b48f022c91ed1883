"""A size budget beside fixed widths: what may be chosen, what was, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isobit.errors import InputError

from .fused import FusedProducts, stored_bits
from .mixed import (
    MixedWidths,
    ProductWidth,
    assign_by_budget,
    assign_by_patterns,
    check_budget,
)
from .output import output_format
from .scheme import DENSE_BITS, QuantizeSettings, scheme_of
from .source import DenseModel

_FREE = 0


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Bits stored for each of `products` by name, at each width that it may have."""

    products: list[FusedProducts]
    stored: dict[str, dict[int, int]]

    @property
    def free(self) -> list[FusedProducts]:
        """Products that --keep does not fix."""
        return [each for each in self.products if len(self.stored[each.name]) > 1]


def width_choices(
    source: DenseModel, products: Sequence[FusedProducts], settings: QuantizeSettings, budget: float
) -> Choices:
    """What the budget can choose among.

    A width kept for one of some fused products holds for all of them. Raises InputError
    E-QUANT-PATTERN for patterns that give fused products different widths, and as
    assign_by_patterns does; E-QUANT-BUDGET for a budget below the least possible, and for one that
    leaves nothing to quantize.
    """
    names = [name for each in products for name in each.names]
    kept = assign_by_patterns(names, settings.keep, _FREE)
    storable = (*output_format(settings.format).widths, DENSE_BITS)
    entries, stored, wrong = source.checkpoint.entries, {}, []
    for each in products:
        fixed = {name: kept[name] for name in each.names if kept[name] != _FREE}
        if len(set(fixed.values())) > 1:
            wrong.append(", ".join(f"{name}={bits}" for name, bits in fixed.items()))
        widths = sorted(set(fixed.values())) or storable
        stored[each.name] = {
            bits: sum(
                stored_bits(
                    module,
                    scheme_of(settings, bits),
                    entries[f"{module.name}.weight"].nbytes * 8 // (module.n * module.k),
                )
                for module in each.modules
            )
            for bits in widths
        }
    if wrong:
        raise InputError(
            "E-QUANT-PATTERN",
            "--keep gives different widths to linear layers that engines fuse:\n  "
            + "\n  ".join(wrong)
            + "\nWith --budget they must share one",
        )
    weights = sum(each.weights for each in products)
    check_budget(stored, weights, budget)
    all_dense = all(DENSE_BITS in widths for widths in stored.values())
    if all_dense and budget * weights >= sum(each[DENSE_BITS] for each in stored.values()):
        raise InputError(
            "E-QUANT-BUDGET", f"--budget {budget:g} leaves every linear layer dense: nothing to do"
        )
    return Choices(products=list(products), stored=stored)


def choose_widths(
    choices: Choices, costs: Mapping[str, Mapping[int, float]], budget: float
) -> MixedWidths:
    """Choose the widths with the least sum of costs: KL in nats by the names of the free products.

    Raises InputError as assign_by_budget does.
    """
    products, stored = choices.products, choices.stored
    fixed = {name: dict.fromkeys(widths, 0.0) for name, widths in stored.items()}
    found = assign_by_budget(
        {name: costs.get(name, zero) for name, zero in fixed.items()},
        stored,
        {each.name: each.weights for each in products},
        budget,
    )
    kl = {name: {str(bits): cost for bits, cost in costs.get(name, {}).items()} for name in stored}
    return MixedWidths(
        budget=budget,
        average=found.average,
        kl=found.cost,
        products={
            name: ProductWidth(bits=found.bits[each.name], kl=kl[each.name])
            for each in products
            for name in each.names
        },
    )
