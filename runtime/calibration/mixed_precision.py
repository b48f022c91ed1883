"""Mixed precision: how sensitive each product is, then the best widths within a budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ...shard.checkpoint.write_file import check_new_folder
from ...shard.quantize.budget import choose_widths, width_choices
from ...shard.quantize.fused import fused_products
from ...shard.quantize.method import MethodSettings
from ...shard.quantize.output import output_format
from ...shard.quantize.scheme import QuantizeSettings, module_schemes
from ...shard.quantize.source import open_dense
from .calibrate import Progress
from .sensitivity import SensitivitySettings, measure_sensitivity


def with_budget(
    model: Path,
    out: Path,
    samples: torch.Tensor,
    stored: QuantizeSettings,
    method: MethodSettings | None,
    budget: float,
    progress: Progress = lambda done, total: None,
    *,
    mse: float = 0.0,
) -> QuantizeSettings:
    """Return `stored` with the best widths within a budget.

    The budget is in bits per weight of the layers' products. Those that `stored.keep` names have
    that width; the others get a width that the format stores or stay dense, so that the sum of
    their divergences from the dense model is least. `method` None: to nearest, `mse` being Grid's.
    Raises InputError as module_schemes, width_choices and measure_sensitivity do, and E-OUT-EXISTS,
    E-OUT-PARENT; bad settings before anything is measured.
    """
    source = open_dense(model)
    check_new_folder(out)
    module_schemes(source.spec, stored)
    choices = width_choices(source, fused_products(source.spec), stored, budget)
    widths = output_format(stored.format).widths
    settings = SensitivitySettings(stored=stored, method=method, mse=mse, widths=widths)
    costs = measure_sensitivity(source, choices.free, samples, settings, out, progress)
    return dataclasses.replace(stored, mixed=choose_widths(choices, costs, budget))
