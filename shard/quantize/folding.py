"""Where the scales of AWQ and SmoothQuant go: out of a product's weight, into what makes its input.

A norm's weight or the rows of the product before are divided by the scales that multiply the
columns behind it, so the model computes what it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isobit.errors import InputError

from ..model.spec import ModelSpec
from ..plan.modules import layer_modules


@dataclass(frozen=True, kw_only=True)
class Fold:
    """`source` is a norm or a product, by module name; `targets` all products that read it."""

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FoldMap:
    """The folds of one layer, and for each product that has none the reason."""

    folds: tuple[Fold, ...]
    skipped: Mapping[str, str]


def fold_map(spec: ModelSpec, layer: int) -> FoldMap:
    """Return where the scales of a layer's products can go.

    Norms feed q, k, v and gate, up. The product silu(gate) * up is linear in up, so up feeds down.
    v feeds o only when every query head has a KV head of its own.
    """
    names = {short: module.name for short, module in layer_modules(spec, layer).items()}
    prefix = f"model.layers.{layer}."
    folds = [
        Fold(source=f"{prefix}input_layernorm", targets=(names["q"], names["k"], names["v"])),
        Fold(source=f"{prefix}post_attention_layernorm", targets=(names["gate"], names["up"])),
        Fold(source=names["up"], targets=(names["down"],)),
    ]
    if spec.heads == spec.kv_heads:
        folds.append(Fold(source=names["v"], targets=(names["o"],)))
        return FoldMap(folds=tuple(folds), skipped={})
    reason = (
        f"{spec.heads} query heads share {spec.kv_heads} KV heads, so one output of v_proj feeds "
        f"{spec.heads // spec.kv_heads} inputs of o_proj, which want different scales"
    )
    return FoldMap(folds=tuple(folds), skipped={names["o"]: reason})


def fold(
    tensors: Mapping[str, torch.Tensor], step: Fold, scales: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the tensors that change: the source's divided, the targets' weights multiplied.

    `tensors` by full name: `<source>.weight` [K] or [K, *], `<source>.bias` [K] where there is one,
    `<target>.weight` [N, K]; those that another rank works on may be absent. `scales` [K]. Computed
    in float64, returned in each tensor's dtype.
    Raises InputError E-QUANT-SCALE for scales that are not positive and finite, or where a result
    is not.
    """
    wide = scales.double()
    bad = int((~((wide > 0) & wide.isfinite())).sum())
    if bad:
        raise InputError(
            "E-QUANT-SCALE",
            f"{step.source}: {bad} of {len(scales)} scales are not positive finite numbers, so "
            "they cannot be folded. Calibrate again",
        )
    changed = {}
    for name in (f"{step.source}.weight", f"{step.source}.bias"):
        if name in tensors:
            tensor = tensors[name]
            divisor = wide if tensor.dim() == 1 else wide[:, None]
            changed[name] = (tensor.double() / divisor).to(tensor.dtype)
    for name in (f"{target}.weight" for target in step.targets):
        if name in tensors:
            changed[name] = (tensors[name].double() * wide).to(tensors[name].dtype)
    overflown = [name for name, tensor in changed.items() if not bool(tensor.isfinite().all())]
    if overflown:
        raise InputError(
            "E-QUANT-SCALE",
            f"scales from {float(wide.min()):.3g} to {float(wide.max()):.3g} take elements out of "
            f"the range of their dtype: {', '.join(overflown)}. Convert the model to bfloat16",
        )
    return changed
