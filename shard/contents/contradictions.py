"""Where the headers of a checkpoint contradict its config: one sentence each, for every command."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..checkpoint.safetensors_file import TensorEntry
from ..formats.expected import ANY, Expected
from ..model.spec import ModelSpec
from ..names import places, plural, spread
from ..plan.modules import layer_modules

_NAMED_LIKE = {
    "qweight": ("gptq", "awq", "auto-round"),
    "weight_packed": ("compressed-tensors",),
    "SCB": ("bitsandbytes",),
    "quant_state.bitsandbytes__nf4": ("bitsandbytes",),
    "quant_state.bitsandbytes__fp4": ("bitsandbytes",),
    "weight_scale": ("compressed-tensors",),
    "weight_scale_inv": ("fp8",),
}


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Files and config.json say different things: `numbers` for programs, `remedy` for people.

    `kind` "not-supported": both are right, and isobit does not read such files. "misused": the
    files are whole, and one that describes them has to go.
    """

    code: str
    where: str
    what: str
    remedy: str
    numbers: dict[str, Any] = field(default_factory=dict)
    kind: Literal["damaged", "not-supported", "misused"] = "damaged"


def contradictions(
    entries: Mapping[str, TensorEntry],
    spec: ModelSpec,
    expected: Mapping[str, Expected],
    unread: Collection[str] = (),
) -> list[Contradiction]:
    """Compare names, shapes and dtypes; what is known to be in files that are absent is not missed.

    The first is what a loader raises: tensors of another quantization explain all that follows, and
    tensors of none are the whole answer.
    """
    if (mislabelled := _not_quantized(entries, spec)) is not None:
        return [mislabelled]
    shapes, dtypes, floats = [], [], []
    for name, tensor in expected.items():
        entry = entries.get(name)
        if entry is None:
            continue
        if not same_shape(tensor.shape, entry.shape):
            shapes.append(name)
        elif entry.dtype not in tensor.dtypes:
            both = all(dtype.is_floating_point for dtype in (entry.dtype, *tensor.dtypes))
            (floats if both else dtypes).append(name)
    missing = [
        name
        for name, tensor in expected.items()
        if tensor.required and name not in entries and name not in unread
    ]
    found = [
        _named_differently(entries, spec),
        _shapes(entries, expected, shapes),
        _dtypes(entries, expected, dtypes),
        _floats(entries, expected, floats),
        _missing(missing),
    ]
    return [each for each in found if each is not None]


def same_shape(expected: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """A scalar may be stored as [] or [1]; a dimension of ANY has any length."""
    same = len(expected) == len(found) and all(
        e in (ANY, f) for e, f in zip(expected, found, strict=True)
    )
    return same or (expected in ((), (1,)) and found in ((), (1,)))


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> bfloat16."""
    return str(dtype).removeprefix("torch.")


def _named_differently(entries: Mapping[str, TensorEntry], spec: ModelSpec) -> Contradiction | None:
    """The names of tensors give away who wrote them, whatever config.json says."""
    method = spec.quantization.method if spec.quantization else "no quantization"
    for part, methods in _NAMED_LIKE.items():
        names = [name for name in entries if name.endswith(f".{part}")]
        if names and method not in methods:
            return Contradiction(
                code="E-QUANT-LABEL",
                where="config.json",
                what=f"config.json says {method}, but {plural(len(names), 'tensor')} (such as "
                f"{names[0]}) are named *.{part}, as {' and '.join(methods)} name them",
                numbers={"config": method, "tensors_like": list(methods), "count": len(names)},
                remedy="put quantization_config into config.json as it is where the weights came "
                "from",
            )
    return None


def _not_quantized(entries: Mapping[str, TensorEntry], spec: ModelSpec) -> Contradiction | None:
    """Dense weights under a label of quantization: dequantized or merged, and the label was left.

    Whatever names a part of a quantized weight is looked for first, so a file with some of them
    missing is not taken for this.
    """
    if spec.quantization is None:
        return None
    linears = (
        module.name
        for layer in range(spec.layers)
        for module in layer_modules(spec, layer).values()
    )
    modules = [module for module in linears if spec.scheme(module) is not None]
    dense = [
        name
        for module in modules
        if (entry := entries.get(name := f"{module}.weight")) is not None
        and entry.dtype.is_floating_point
    ]
    if not modules or len(dense) < len(modules):
        return None
    method, file = spec.quantization.method, spec.quantization.file
    return Contradiction(
        code="E-QUANT-LABEL",
        where=file,
        what=f"{file} says {method}, but all {len(dense)} weights that it would be for are dense "
        f"(such as {min(dense)})",
        numbers={"config": method, "dense": len(dense)},
        remedy=f"remove {file}, which transformers does not read"
        if file != "config.json"
        else "remove quantization_config from config.json",
        kind="misused",
    )


def _shapes(
    entries: Mapping[str, TensorEntry], expected: Mapping[str, Expected], names: list[str]
) -> Contradiction | None:
    if not names:
        return None
    shapes = {
        name: {"config": list(expected[name].shape), "file": list(entries[name].shape)}
        for name in names
    }

    def text(same: list[str]) -> str:
        first = shapes[same[0]]
        return f"config.json implies {first['config']}, the file says {first['file']}"

    return Contradiction(
        code="E-CONFIG-SHAPE",
        where=places(names),
        what=f"{plural(len(names), 'tensor')} against config.json{spread(names, text, alone=True)}",
        numbers={"tensors": shapes},
        remedy="if config.json was edited, restore it; if not, the tensors are not this model's",
    )


def _dtypes(
    entries: Mapping[str, TensorEntry], expected: Mapping[str, Expected], names: list[str]
) -> Contradiction | None:
    return _other_dtype(
        entries,
        expected,
        names,
        what="that the format named in config.json does not use",
        remedy="the quantization named in config.json is not the one in the files, or the files "
        "were converted: take the original",
        kind="damaged",
    )


def _floats(
    entries: Mapping[str, TensorEntry], expected: Mapping[str, Expected], names: list[str]
) -> Contradiction | None:
    """Numbers of a kind that other programs convert as they load."""
    return _other_dtype(
        entries,
        expected,
        names,
        what="that isobit does not read",
        remedy="save the model anew in bfloat16, float16 or float32, as transformers does with "
        "from_pretrained(..., dtype=...).save_pretrained(...)",
        kind="not-supported",
    )


def _other_dtype(
    entries: Mapping[str, TensorEntry],
    expected: Mapping[str, Expected],
    names: list[str],
    *,
    what: str,
    remedy: str,
    kind: Literal["damaged", "not-supported"],
) -> Contradiction | None:
    if not names:
        return None

    def text(same: list[str]) -> str:
        allowed = " or ".join(dtype_name(dtype) for dtype in expected[same[0]].dtypes)
        return f"{dtype_name(entries[same[0]].dtype)}, expected {allowed}"

    return Contradiction(
        code="E-CKPT-DTYPE",
        where=places(names),
        what=f"a dtype {what}, in {plural(len(names), 'tensor')}{spread(names, text, alone=True)}",
        numbers={"tensors": {name: dtype_name(entries[name].dtype) for name in names}},
        remedy=remedy,
        kind=kind,
    )


def _missing(names: list[str]) -> Contradiction | None:
    if not names:
        return None
    return Contradiction(
        code="E-CKPT-TENSOR",
        where=places(names),
        what=f"missing, though config.json implies them: {plural(len(names), 'tensor')}"
        + spread(names, alone=True),
        numbers={"tensors": names},
        remedy="download the missing files, or restore config.json",
    )
