"""What to try when quantizing cost too much: what was not tried yet, the cheapest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.evaluation.evaluate import Gates
from ...shard.formats.scheme import CHANNEL

LIMITS = Gates(perplexity_increase=0.05, kl=0.05)
"""More than this is told: between the good and the plain 4-bit weights of an 8B model. By the LLaMA
3 8B table of llama.cpp's tools/perplexity/README.md q4_K_S costs 0.043 nats of mean KL divergence
and 4.3 % of perplexity, q4_0 0.072 nats and 7.5 %."""

GROUP_SIZES = (128, 64, 32)
BUDGET = 5.0
TEXT = "TEXT.txt"


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a model was quantized, and how well each weight came out.

    `scheme` is int4, int8 or w8a8; `format` awq stores 4 bits alone, gptq no zero points.
    `divisors` are the group sizes that divide every product; `modules` are those of
    quantization_report.json.
    """

    method: str
    scheme: str
    format: str
    group_size: int
    mixed: bool
    has_text: bool
    divisors: tuple[int, ...]
    modules: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Something to try: `name` for a folder, `why`, and the options that change."""

    name: str
    why: str
    changes: Mapping[str, Any]


def suggestions(made: Made) -> list[Suggestion]:
    """What has not been tried on a model, the one with the best prospects for its size first."""
    found: list[Suggestion] = []
    zeros = {"out_format": "gptq_v2"} if made.format == "gptq" else {}
    wider = {"out_format": None} if made.format == "awq" else {}
    text = {} if made.has_text else {"text": [TEXT]}
    if made.scheme == "w8a8":
        if made.method != "smoothquant":
            why = "SmoothQuant moves outliers from activations into weights, at the same size"
            found.append(_suggest("smoothquant", why, method="smoothquant", **text, **NO_GPTQ))
        why = "INT8 weights alone leave activations as they are, at the same size"
        method = "gptq" if made.method == "smoothquant" else made.method
        changes = {"method": method, "scheme": "int8", "activations": None}
        size = made.divisors[0] if made.divisors else CHANNEL
        found.append(_suggest("int8", why, group_size=size, **changes))
        return found
    if made.method == "absmax":
        why = "GPTQ chooses codes by their effect on the output, at the same size"
        found.append(_suggest("gptq", why, method="gptq", **text))
        why = "AWQ scales up the input features that matter most, at the same size"
        found.append(_suggest("awq", why, method="awq", symmetric=None, **zeros, **text, **NO_GPTQ))
    elif made.method in ("gptq", "awq"):
        why = "AWQ and GPTQ together: scales for the features that matter, then codes by their "
        why += "effect on the output, at the same size"
        found.append(_suggest("awq-gptq", why, method="awq+gptq", symmetric=None, **zeros))
    smaller = [size for size in made.divisors if size < made.group_size or made.group_size < 0]
    if smaller:
        size, was = smaller[0], made.group_size
        more = 16 / size - (16 / was if was > 0 else 0)
        why = f"a scale for {size} weights fits them closer, {more:g} bits per weight more"
        found.append(_suggest(f"g{size}", why, group_size=size))
    if made.scheme == "int4" and not made.mixed:
        name, error = worst_module(made.modules)
        why = f"mixed precision: more bits where they matter, {BUDGET:g} a weight in all; now "
        why += f"{name} errs most, {error}"
        found.append(_suggest("mixed", why, budget=BUDGET, scheme=None, **text, **wider))
    if made.scheme == "int4":
        why = "INT8 is nearly lossless for most models, at twice the size"
        # What only the budget needed has to go with it.
        unused = NO_TEXT if made.method == "absmax" else {}
        found.append(
            _suggest("int8", why, scheme="int8", keep=None, budget=None, **unused, **wider)
        )
    return found


NO_GPTQ = {"desc_act": False, "damp_percent": None, "mse": False}
"""Options of GPTQ, which other methods refuse."""

NO_TEXT = {"text": None, "dataset": None, "samples": None, "length": None}
"""Options of calibration, which absmax refuses."""


def worst_module(modules: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The module of the greatest error, and that error in words."""
    name = max(modules, key=lambda name: _error(modules[name]))
    module = modules[name]
    if "layer_error" in module:
        return name, f"{module['layer_error']:.2%} of its output"
    noise = module["sqnr_db"]
    return name, "not at all" if noise is None else f"{noise:.1f} dB of signal to noise"


def _error(module: Mapping[str, Any]) -> float:
    """What rises with the error: its share in the output, or without calibration in the weight."""
    if "layer_error" in module:
        return module["layer_error"]
    return float("-inf") if module["sqnr_db"] is None else -module["sqnr_db"]


def _suggest(name: str, why: str, **changes: Any) -> Suggestion:
    return Suggestion(name=name, why=why, changes=changes)
