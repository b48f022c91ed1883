"""GPTQModel's GPTQ and AutoAWQ's searches, called on one weight with statistics made elsewhere.

None of the packages is a dependency; a function raises ModuleNotFoundError where its own is absent.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call, its wall seconds, and its CPU seconds over all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


def gptqmodel_gptq(
    weight: torch.Tensor, hessian: torch.Tensor, **settings: object
) -> tuple[torch.Tensor, dict[str, float]]:
    """The weight [N, K] as GPTQModel rounds it, and the time of its quantize()."""
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    config = QuantizeConfig(act_group_aware=False, fallback=None, **settings)
    task = GPTQ(_linear(weight), config)
    task.quantizer.configure(perchannel=True)
    task.H = hessian.clone()
    task.nsamples = task._hessian_total_samples = 1
    result, times = timed(task.quantize)
    return result[0], times


@cache
def _import_autoawq() -> Any:
    """AutoAWQ's quantizer class, without its models, which newer transformers break."""
    spec = importlib.util.find_spec("awq")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'awq'", name="awq")
    root = Path(spec.submodule_search_locations[0])
    for name in ("awq", "awq.models"):
        stub = types.ModuleType(name)
        stub.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = stub
    from awq.quantize.quantizer import AwqQuantizer

    return AwqQuantizer


def _autoawq(group_size: int) -> Any:
    """A quantizer for asymmetric 4-bit codes, without a model."""
    kind = _import_autoawq()
    quantizer = kind.__new__(kind)
    quantizer.w_bit, quantizer.group_size, quantizer.zero_point = 4, group_size, True
    quantizer.duo_scaling, quantizer.max_chunk_memory = True, 1 << 30
    quantizer.n_parallel_calib_samples = None
    return quantizer


def autoawq_scales(
    weight: torch.Tensor, inputs: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """The scales [K] that AutoAWQ finds for inputs [T, K], and the time."""
    quantizer, linear = _autoawq(group_size), _linear(weight)
    holder = nn.Module()
    holder.linear = linear
    holder.before = nn.Identity()
    result, times = timed(
        lambda: quantizer._search_best_scale(holder, holder.before, [linear], inputs[None])
    )
    return result[2], times


def autoawq_bounds(
    weight: torch.Tensor, inputs: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """The largest magnitudes [N, G] that AutoAWQ's search for clipping keeps, and the time."""
    quantizer = _autoawq(group_size)
    bounds, times = timed(
        lambda: quantizer._compute_best_clip(weight, inputs, n_sample_token=len(inputs))
    )
    return bounds.squeeze(-1), times
