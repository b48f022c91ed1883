"""Stored zero points: how often each occurs, and what they say about the version of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from isobit.findings import Finding

from ..formats.awq import NIBBLE_OF_COLUMN
from ..formats.codes import unpack_words
from ..formats.gptq import ZERO_OFFSETS
from ..formats.scheme import WeightScheme
from ..names import places, plural, spread
from .quantized import Packing

LABELS = {offset: label for label, offset in ZERO_OFFSETS.items()}
FEW_BITS = 4
"""With more, weights whose mean is not quite zero are a step away from it as well."""
FEWEST_ZEROS = 64
SURELY_OFF, TIMES = 0.5, 2
"""The mean of weights is more steps from zero than this in one reading, and more than twice as many
as in the other, which is a step apart. Measured on examples/stdlib-qwen2, 35 modules in groups of
32, minimum to maximum: 0.04 of a step at most in the right reading, 0.96 at least in the other."""


def stored_zeros(words: torch.Tensor, n: int, packing: Packing, bits: int) -> torch.Tensor:
    """Zero points [n, g] uint8 as they are stored; filler beyond n is left out."""
    if packing == "along k":
        return unpack_words(words.T, bits)[:, :n].T
    codes = unpack_words(words, bits)
    if packing == "awq":
        codes = codes.view(words.shape[0], words.shape[1], 8)[:, :, NIBBLE_OF_COLUMN]
        codes = codes.reshape(words.shape[0], -1)
    return codes[:, :n].T


def found_version(histogram: torch.Tensor, bits: int) -> str | None:
    """The GPTQ version whose symmetric zero point every stored one is; None when they vary."""
    values = histogram.nonzero().flatten().tolist()
    middle = 1 << (bits - 1)
    if len(values) != 1:
        return None
    return {middle - offset: label for label, offset in ZERO_OFFSETS.items()}.get(values[0])


@dataclass(frozen=True, kw_only=True)
class StoredZeros:
    """Zero points of one weight: the tensor, how often each occurs as it is stored, and the mean
    weight in steps of its scale for each offset that may have been taken off."""

    name: str
    scheme: WeightScheme
    histogram: torch.Tensor
    means: tuple[float, float]


def zero_findings(found: Sequence[StoredZeros]) -> list[Finding]:
    """Compare zero points with the label of the config.

    Symmetric zero points have one value in each version, so they prove which it is. Asymmetric
    ones differ by where zero lies among the codes: the weights of a layer add up to next to
    nothing, in the other version to one step each.
    """
    conflicts: dict[str, list[str]] = {}
    odd: dict[str, list[int]] = {}
    wrapped: dict[str, int] = {}
    label, agreeing = LABELS[1], 0
    for zeros in found:
        name, scheme, histogram = zeros.name, zeros.scheme, zeros.histogram
        if scheme.format == "pack-quantized" and scheme.symmetric:
            values = histogram.nonzero().flatten().tolist()
            if values != [1 << (scheme.bits - 1)]:
                odd[name] = values
        if scheme.format != "gptq":
            continue
        label = LABELS[scheme.zero_offset]
        version = found_version(histogram, scheme.bits)
        if version is not None and version != label:
            conflicts.setdefault(f"{int(histogram.argmax())}", []).append(name)
        elif version is not None:
            agreeing += 1
        elif scheme.symmetric:
            odd[name] = histogram.nonzero().flatten().tolist()
        elif scheme.zero_offset and int(histogram[-1]):
            wrapped[name] = int(histogram[-1])
    findings = [_conflict(value, names, label, agreeing) for value, names in conflicts.items()]
    findings += _off_by_one(found)
    if odd:
        findings.append(_not_symmetric(odd))
    if wrapped:
        findings.append(_wrapped(wrapped))
    return findings


def _off_by_one(found: Sequence[StoredZeros]) -> list[Finding]:
    """What the mean of asymmetric weights says of the label, over most of them."""
    varying = [
        zeros
        for zeros in found
        if zeros.scheme.format == "gptq"
        and zeros.scheme.bits == FEW_BITS
        and not zeros.scheme.symmetric
        and found_version(zeros.histogram, FEW_BITS) is None
        and int(zeros.histogram.sum()) >= FEWEST_ZEROS
    ]
    if not varying:
        return []
    offset = varying[0].scheme.zero_offset
    off = median(zeros.means[offset] for zeros in varying)
    other = median(zeros.means[1 - offset] for zeros in varying)
    if abs(off) < SURELY_OFF or abs(off) < TIMES * abs(other):
        return []
    label, data = LABELS[offset], LABELS[1 - offset]
    names = [zeros.name for zeros in varying]
    return [
        Finding(
            severity="error",
            code="E-QUANT-LABEL",
            where=places(names),
            what=f"read as {label}, as the config says, weights are {off:+.2f} steps from zero on "
            f"average; read as {data}, {other:+.2f} (median of {plural(len(names), 'tensor')}). "
            f"Weights of a layer add up to next to nothing, so this is a {data} file",
            numbers={"label": label, "data": data, "off_by": off, "tensors": names},
            remedy=f'set checkpoint_format to "{data}" in config.json (and quantize_config.json)',
        )
    ]


def histogram_report(histogram: torch.Tensor) -> dict[str, Any]:
    """A histogram for JSON: only values that occur."""
    return {str(value): int(histogram[value]) for value in histogram.nonzero().flatten().tolist()}


def _conflict(value: str, names: list[str], label: str, agreeing: int) -> Finding:
    other = LABELS[1 - ZERO_OFFSETS[label]]
    return Finding(
        severity="error",
        code="E-QUANT-LABEL",
        where=places(names),
        what=f"stored zero points are {value}, as in a {other} file, but the config says {label} "
        f"({plural(len(names), 'tensor')}). Read by the label, every weight is off by one step",
        numbers={"stored": int(value), "label": label, "data": other, "tensors": names},
        remedy=f"{agreeing} other weights agree with the label, so the files are a mixture: take "
        "the original"
        if agreeing
        else f'set checkpoint_format to "{other}" in config.json (and quantize_config.json)',
    )


def _not_symmetric(odd: dict[str, list[int]]) -> Finding:
    return Finding(
        severity="error",
        code="E-QUANT-ZEROS",
        where=places(list(odd)),
        what="the config says symmetric, but stored zero points are not all the middle code"
        + spread(odd, lambda same: ", ".join(map(str, odd[same[0]][:8]))),
        numbers={"stored": odd},
        remedy="if the model was quantized with sym=False, set sym to false in config.json",
    )


def _wrapped(wrapped: dict[str, int]) -> Finding:

    def text(same: list[str]) -> str:
        return plural(sum(wrapped[name] for name in same), "zero point")

    return Finding(
        severity="warning",
        code="W-QUANT-WRAP",
        where=places(list(wrapped)),
        what="v1 stores zero - 1, and a zero point of 0 wrapped to the largest code. isobit reads "
        "0, as AutoGPTQ does; other engines read one more than the largest code"
        + spread(wrapped, text),
        numbers={"tensors": wrapped},
        remedy='store the model as "gptq_v2", which has no such case',
    )
