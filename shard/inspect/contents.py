"""The tensors that headers list against those that config.json implies: every contradiction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..checkpoint import Checkpoint, Scan
from ..formats.expected import Expected
from ..spec import ModelSpec
from ..validate import expected_tensors, same_shape
from .findings import Finding, places, plural, spread
from .quantized import QuantizedModule, quantized_modules
from .sizes import edited_sizes

# Buffers that old versions of transformers saved; every program computes them itself.
_HARMLESS_ENDS = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")
# What format writers leave beside a weight although its scheme makes no use of it.
_UNUSED_PARTS = ("weight_zero_point", "weight_g_idx", "g_idx", "qzeros", "weight_format")
_NAMED_LIKE = {
    "qweight": ("gptq", "awq"),
    "weight_packed": ("compressed-tensors",),
    "SCB": ("bitsandbytes",),
    "quant_state.bitsandbytes__nf4": ("bitsandbytes",),
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """`spec` has the sizes that the tensors say. `fitting` are expected tensors, shape and all."""

    spec: ModelSpec
    modules: list[QuantizedModule]
    fitting: set[str]
    missing: list[str]
    unexpected: list[str]
    findings: list[Finding]


def check_contents(scan: Scan, spec: ModelSpec) -> Contents:
    """Compare shapes, dtypes and names; needs no data."""
    checkpoint = scan.checkpoint
    findings, true = edited_sizes(scan, spec)
    modules = quantized_modules(true)
    expected = expected_tensors(true)
    companions: dict[str, bool] = {}
    for module in modules:
        companions |= module.companions()
    shapes, dtypes, fitting = [], [], set()
    for name, tensor in expected.items():
        entry = checkpoint.entries.get(name)
        if entry is None:
            continue
        if not same_shape(tensor.shape, entry.shape):
            shapes.append(name)
        elif entry.dtype not in tensor.dtypes:
            dtypes.append(name)
        else:
            fitting.add(name)
    findings += _wrong_shapes(checkpoint, expected, shapes)
    findings += _wrong_dtypes(checkpoint, expected, dtypes)
    required = {name: tensor.required for name, tensor in expected.items()} | companions
    known = checkpoint.entries.keys() | scan.unread
    missing = [name for name, needed in required.items() if needed and name not in known]
    findings += _named_differently(checkpoint, true)
    findings += _missing(missing)
    unexpected = [name for name in checkpoint.entries if name not in required]
    return Contents(
        spec=true,
        modules=modules,
        fitting=fitting,
        missing=missing,
        unexpected=unexpected,
        findings=findings,
    )


def unexpected_findings(
    names: list[str], spec: ModelSpec, all_zero: Callable[[str], bool]
) -> list[Finding]:
    """Tensors that nothing reads: harmless ones as a note, others as a warning.

    GPTQ writers store a bias of zeros for modules that have none; any other bias would be lost.
    """
    harmless, odd = [], []
    for name in names:
        unused = name.endswith(_HARMLESS_ENDS) or name.rpartition(".")[2] in _UNUSED_PARTS
        tied = spec.tied_embeddings and name == "lm_head.weight"
        zero_bias = name.endswith(".bias") and all_zero(name)
        (harmless if unused or tied or zero_bias else odd).append(name)
    findings = []
    if odd:
        findings.append(
            Finding(
                severity="warning",
                code="W-CKPT-EXTRA",
                where=places(odd),
                what=f"in the files, and not implied by config.json: {plural(len(odd), 'tensor')}"
                + spread(odd),
                numbers={"tensors": odd},
                way_out="isobit does not read them. If the model needs them, config.json names "
                "the wrong architecture or quantization",
            )
        )
    if harmless:
        findings.append(
            Finding(
                severity="note",
                code="N-CKPT-EXTRA",
                where=places(harmless),
                what=f"{plural(len(harmless), 'tensor')} that no engine needs (tables that are "
                "computed, zero biases, a copy of the tied embedding, unused parts)"
                + spread(harmless),
                numbers={"tensors": harmless},
                way_out="nothing to do",
            )
        )
    return findings


def _wrong_shapes(
    checkpoint: Checkpoint, expected: dict[str, Expected], names: list[str]
) -> list[Finding]:
    if not names:
        return []
    shapes = {
        name: {
            "config": list(expected[name].shape),
            "file": list(checkpoint.entries[name].shape),
        }
        for name in names
    }

    def text(same: list[str]) -> str:
        first = shapes[same[0]]
        return f"config.json implies {first['config']}, the file says {first['file']}"

    return [
        Finding(
            severity="error",
            code="E-CONFIG-SHAPE",
            where=places(names),
            what=f"{plural(len(names), 'tensor')} against config.json{spread(names, text)}",
            numbers={"tensors": shapes},
            way_out="if config.json was edited, restore it; if not, the tensors are not this "
            "model's",
        )
    ]


def _wrong_dtypes(
    checkpoint: Checkpoint, expected: dict[str, Expected], names: list[str]
) -> list[Finding]:
    if not names:
        return []
    entries = checkpoint.entries

    def text(same: list[str]) -> str:
        allowed = " or ".join(dtype_name(dtype) for dtype in expected[same[0]].dtypes)
        return f"{dtype_name(entries[same[0]].dtype)}, expected {allowed}"

    return [
        Finding(
            severity="error",
            code="E-CKPT-DTYPE",
            where=places(names),
            what=f"a dtype that the format named in config.json does not use, in "
            f"{plural(len(names), 'tensor')}{spread(names, text)}",
            numbers={"tensors": {name: dtype_name(entries[name].dtype) for name in names}},
            way_out="the quantization named in config.json is not the one in the files, or the "
            "files were converted: take the original",
        )
    ]


def _missing(names: list[str]) -> list[Finding]:
    if not names:
        return []
    return [
        Finding(
            severity="error",
            code="E-CKPT-TENSOR",
            where=places(names),
            what=f"missing, though config.json implies them: {plural(len(names), 'tensor')}"
            + spread(names),
            numbers={"tensors": names},
            way_out="download the missing files, or restore config.json",
        )
    ]


def _named_differently(checkpoint: Checkpoint, spec: ModelSpec) -> list[Finding]:
    """The names of tensors give away who wrote them, whatever config.json says."""
    method = spec.quantization.method if spec.quantization else "no quantization"
    for part, methods in _NAMED_LIKE.items():
        names = [name for name in checkpoint.entries if name.endswith(f".{part}")]
        if names and method not in methods:
            return [
                Finding(
                    severity="error",
                    code="E-QUANT-LABEL",
                    where="config.json",
                    what=f"config.json says {method}, but {len(names)} tensors are named "
                    f"*.{part}, as {' and '.join(methods)} name them",
                    numbers={"config": method, "tensors_like": list(methods), "count": len(names)},
                    way_out="restore quantization_config in config.json from where the weights "
                    "came from",
                )
            ]
    return []


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
