"""Stored zero points: how often each occurs, and what they say about the version of the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..formats.awq import NIBBLE_OF_COLUMN
from ..formats.codes import unpack_words
from ..formats.gptq import ZERO_OFFSETS
from ..formats.scheme import WeightScheme
from ..names import places, plural, spread
from .findings import Finding
from .quantized import Packing

LABELS = {offset: label for label, offset in ZERO_OFFSETS.items()}


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


def zero_findings(
    found: Iterable[tuple[str, WeightScheme, torch.Tensor]],
) -> list[Finding]:
    """Compare zero points (name of the tensor, scheme, histogram) with the label of the config.

    Symmetric zero points have one value in each version, so they prove which it is. Asymmetric
    ones prove nothing, except that no quantizer makes every one the same.
    """
    conflicts: dict[str, list[str]] = {}
    odd: dict[str, list[int]] = {}
    wrapped: dict[str, int] = {}
    label, agreeing = LABELS[1], 0
    for name, scheme, histogram in found:
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
    if odd:
        findings.append(_not_symmetric(odd))
    if wrapped:
        findings.append(_wrapped(wrapped))
    return findings


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
        way_out=f"{agreeing} other weights agree with the label, so the files are a mixture: take "
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
        way_out="if the model was quantized with sym=False, set sym to false in config.json",
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
        way_out='store the model as "gptq_v2", which has no such case',
    )
