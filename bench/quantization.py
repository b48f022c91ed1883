"""How good and how fast the quantization algorithms are, beside GPTQModel and AutoAWQ.

    python -m bench.quantization [--rows 1024] [--columns 4096] [--threads 1] [--speed N K] [--json]

Every algorithm gets the same random weight and the same Hessian of correlated inputs, of which some
features are 20 times as large as others. Errors are tr((W-Q) H (W-Q)^T) / tr(W H W^T), ours /
theirs; SmoothQuant is beside the paper's formula in float64. Times are ours / theirs too; on a
busy machine and with one thread, those of the CPU say more. The other packages are no dependencies.
Install them as tests/golden/README.md says, best in an environment of their own, and name its
site-packages in PYTHONPATH; what is missing is said, and left out.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from isobit.shard.quantize.absmax import quantize_absmax
from isobit.shard.quantize.awq import AwqSettings, search_scales
from isobit.shard.quantize.clipping import ClipSettings, clip, search_bounds
from isobit.shard.quantize.gptq import GptqSettings, quantize_gptq
from isobit.shard.quantize.quality import layer_error
from isobit.shard.quantize.smoothquant import smooth_scales

from . import quantization_oracles as oracles

GROUP = 128
TOKENS = 2048
SETTINGS: dict[str, dict[str, Any]] = {
    "group 128": {},
    "group 32": {"group_size": 32},
    "group 64": {"group_size": 64},
    "one group": {"group_size": -1},
    "asymmetric": {"sym": False},
    "act-order": {"desc_act": True},
    "act-order, static groups": {"desc_act": True, "static_groups": True},
    "mse": {"mse": 2.4},
    "8 bits": {"bits": 8},
}


def problem(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight [n, k], inputs [TOKENS, k] and their Hessian [k, k]."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    inputs = random(TOKENS, 64) @ random(64, k) / 8 + random(TOKENS, k)
    inputs /= torch.rand(k, generator=generator) + 0.05
    return 0.02 * random(n, k), inputs, 2 / TOKENS * inputs.T @ inputs


def settings_of(changes: dict[str, Any]) -> tuple[dict[str, Any], GptqSettings]:
    """The same settings in GPTQModel's names and in ours."""
    theirs = {"bits": 4, "group_size": GROUP, "sym": True, "desc_act": False, **changes}
    theirs["damp_percent"] = 0.01
    ours = {name: value for name, value in theirs.items() if name != "sym"}
    return theirs, GptqSettings(symmetric=theirs["sym"], **ours)


def gptq_errors(n: int, k: int) -> list[dict[str, Any]]:
    weight, _, hessian = problem(n, k)
    rows = []
    for name, changes in SETTINGS.items():
        theirs, ours = settings_of(changes)
        quantized, their_s = oracles.gptqmodel_gptq(weight, hessian, **theirs)
        result, our_s = oracles.timed(lambda ours=ours: quantize_gptq(weight, hessian, ours))
        mine = layer_error(weight, result.weight.dequantize(ours.bits), hessian)
        wrong = layer_error(weight, quantized, hessian)
        rows.append(row(f"GPTQ, {name}", mine, wrong, our_s, their_s))
    return rows


def awq_errors(n: int, k: int) -> list[dict[str, Any]]:
    weight, inputs, hessian = problem(n, k)

    def error(scales: torch.Tensor, bounds: torch.Tensor | None = None) -> float:
        scaled = weight * scales
        scaled = scaled if bounds is None else clip(scaled, bounds)
        rounded = quantize_absmax(scaled, 4, GROUP, symmetric=False).dequantize(4)
        return layer_error(weight, rounded / scales, hessian)

    mean = inputs.abs().mean(dim=0)
    theirs, their_s = oracles.autoawq_scales(weight, inputs, GROUP)
    settings = AwqSettings(group_size=GROUP)
    found, our_s = oracles.timed(lambda: search_scales([weight], mean, settings, hessian=hessian))
    scales = row("AWQ, scales", error(found.scales), error(theirs), our_s, their_s)
    both = AwqSettings(group_size=GROUP, duo_scaling="both")
    best = search_scales([weight], mean, both, hessian=hessian)
    more = row("AWQ, scales with and without duo", error(best.scales), error(theirs))
    ones = torch.ones(k)
    their_bounds, their_s = oracles.autoawq_bounds(weight, inputs[::4], GROUP)
    clipping = ClipSettings(group_size=GROUP)
    bounds, our_s = oracles.timed(lambda: search_bounds(weight, hessian, clipping))
    clipped = row("AWQ, clipping", error(ones, bounds), error(ones, their_bounds), our_s, their_s)
    return [row("AWQ, nothing (round to nearest)", error(ones), error(ones)), scales, more, clipped]


def smoothquant_errors(n: int, k: int) -> list[dict[str, Any]]:
    """Folded weights, rounded to int8 per output, and how far they are from float64 before that."""
    weight, inputs, hessian = problem(n, k)
    highest, wide = inputs.abs().amax(dim=0), weight.double()
    scales = highest.double().sqrt() / wide.abs().amax(dim=0).sqrt()
    theirs = wide * scales
    step = theirs.abs().amax(dim=1, keepdim=True) / 127.5
    rounded = (theirs / step).round().clamp(-128, 127) * step / scales
    own = smooth_scales([weight], highest, 0.5)
    ours = weight * own
    codes = quantize_absmax(ours, 8, -1).dequantize(8)
    mine, wrong = (layer_error(weight, each, hessian) for each in (codes / own, rounded.float()))
    far = float(((ours - theirs) / theirs).abs().max())
    return [
        row("SmoothQuant, folded and rounded", mine, wrong),
        {"name": "SmoothQuant, folded, largest relative difference", "difference": far},
    ]


def speed(n: int, k: int) -> list[dict[str, Any]]:
    weight, _, hessian = problem(n, k)
    theirs, ours = settings_of({})
    result, our_s = oracles.timed(lambda: quantize_gptq(weight, hessian, ours))
    mine = layer_error(weight, result.weight.dequantize(4), hessian)
    quantized, their_s = oracles.gptqmodel_gptq(weight, hessian, **theirs)
    wrong = layer_error(weight, quantized, hessian)
    return [row(f"GPTQ, {n} x {k}", mine, wrong, our_s, their_s)]


def row(
    name: str,
    ours: float,
    theirs: float,
    our_s: dict[str, float] | None = None,
    their_s: dict[str, float] | None = None,
) -> dict[str, Any]:
    found = {"name": name, "ours": ours, "theirs": theirs, "ratio": ours / theirs}
    return found | ({"ours_s": our_s, "theirs_s": their_s} if our_s else {})


def shown(found: dict[str, Any]) -> str:
    if "difference" in found:
        return f"{found['name']}: {found['difference']:.1e}"
    line = f"{found['name']:36} {found['ours']:.3e} / {found['theirs']:.3e} = {found['ratio']:.4f}"
    if "ours_s" not in found:
        return line
    ours, theirs = found["ours_s"], found["theirs_s"]
    return line + "".join(
        f"   {clock} {ours[clock]:.2f} / {theirs[clock]:.2f} s" for clock in ("wall", "cpu")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024, help="N")
    parser.add_argument("--columns", type=int, default=4096, help="K")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--speed", type=int, nargs=2, metavar=("N", "K"), help="one more GPTQ")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = (arguments.rows, arguments.columns)
    parts = [
        lambda: smoothquant_errors(*shape),
        lambda: gptq_errors(*shape),
        lambda: awq_errors(*shape),
    ]
    if arguments.speed:
        parts.append(lambda: speed(*arguments.speed))
    rows, missing = [], []
    for part in parts:
        try:
            rows += part()
        except ModuleNotFoundError as error:
            missing.append(f"{error.name} is not installed: its comparison is left out")
    if arguments.json:
        print(json.dumps({"rows": rows, "missing": missing, "threads": arguments.threads}))
        return
    print("\n".join(map(shown, rows)))
    print("\n".join(missing))


if __name__ == "__main__":
    main()
