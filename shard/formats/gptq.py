"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them, v1 and v2.

`qweight` int32 [K*b/32, N] along K; `qzeros` int32 [G, ceil(N*b/32)] along N; `scales` [G, N];
`g_idx` int32 [K], optional. Low bits first. v2 stores zeros. v1 stores zero - 1: AutoGPTQ element
by element (0 becomes 15), GPTQModel by subtracting 1 from every element of a word at once, so that
a borrow runs into the neighbour.
https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/ModelCloud/GPTQModel
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from isobit.errors import DamagedError, NotSupportedError

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features
from ..checkpoint.safetensors_file import SliceReader, TensorEntry
from ..patterns import shown
from .codes import (
    QuantizedSlice,
    WholeWeight,
    add_to_words,
    column_groups,
    group_index,
    pack_words,
    packed_rows,
    read_packed_columns,
)
from .dynamic import dynamic_rules
from .expected import FLOATS, Expected
from .scheme import HEAD, LINEAR, QuantizationSpec, Rule, Targets, WeightScheme
from .settings import (
    MOST_PATTERNS,
    Problems,
    bits,
    check_count,
    flag,
    group_size,
    mapping,
    text,
    unlike,
    warn_unknown,
)

log = logging.getLogger("isobit.shard")

GROUP_INDEX: str | None = "g_idx"
BITS = (4, 8)
ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
_KNOWN = {
    "batch_size", "bits", "block_name_to_quantize", "cache_block_outputs", "checkpoint_format",
    "damp_auto_increment", "damp_percent", "dataset", "desc_act", "disable_exllama", "dynamic",
    "exllama_config", "format", "group_size", "hessian", "hf_select_quant_linear",
    "is_marlin_format", "lm_head", "max_input_length", "meta", "method", "model_file_base_name",
    "model_name_or_path", "model_seqlen", "module_name_preceding_first_block",
    "modules_in_block_to_quantize", "mse", "offload_to_disk", "offload_to_disk_path",
    "pack_dtype", "pack_impl", "pad_token_id", "quant_method", "quantizer", "rotation",
    "static_groups", "sym", "tokenizer", "true_sequential", "use_cuda_fp16", "use_exllama",
    "version",
}  # fmt: skip


def quantization(settings: dict[str, Any]) -> QuantizationSpec:
    """Read a GPTQ config. `dynamic` overrides settings per module, or leaves modules dense; where
    `modules_in_block_to_quantize` lists modules, those that it does not list are dense.

    Raises DamagedError and NotSupportedError E-QUANT-SCHEME and E-QUANT-PATTERN.
    """
    warn_unknown("gptq", settings, _KNOWN)
    problems = Problems()
    label = problems.get(_label, settings) or "gptq"
    problems.get(_refuse_rotation, settings)
    with_head = problems.get(flag, "gptq", settings, "lm_head", False)
    listed = problems.get(listed_modules, "gptq", settings)
    whole = problems.get(scheme_of, "gptq", settings, ZERO_OFFSETS[label])
    if whole is None:
        problems.raise_all()
    dynamic = problems.get(
        dynamic_rules, "gptq", settings, lambda some: scheme_of("gptq", some, ZERO_OFFSETS[label])
    )
    problems.raise_all()
    targets = LINEAR
    if listed:
        targets = Targets(suffixes=listed, names=HEAD.names if with_head else frozenset())
    head = () if with_head else (Rule(targets=HEAD, scheme=None),)
    return QuantizationSpec(
        method="gptq",
        rules=(*head, *(dynamic or ()), Rule(targets=targets, scheme=whole)),
        evidence=f"config says checkpoint_format {label!r}",
    )


def _label(settings: dict[str, Any]) -> str:
    label = text("gptq", settings, "checkpoint_format") or text("gptq", settings, "format")
    label = label or "gptq"
    if flag("gptq", settings, "is_marlin_format", False):
        label = "marlin"
    if label not in ZERO_OFFSETS:
        raise NotSupportedError(
            "E-QUANT-SCHEME",
            f"gptq: checkpoint_format {shown(label)} is another layout and not read. Read: gptq "
            "(v1), gptq_v2. GPTQModel converts: GPTQModel.load(...).save(...) with format gptq_v2",
        )
    return label


def _refuse_rotation(settings: dict[str, Any]) -> None:
    for place in (settings, mapping("gptq", settings, "meta")):
        if place.get("rotation"):
            raise NotSupportedError(
                "E-QUANT-SCHEME",
                f"gptq: rotation {shown(place['rotation'])} is not supported: rotated weights "
                "belong to another computation. Quantize the original model again without rotation",
            )


def listed_modules(where: str, settings: dict[str, Any]) -> tuple[str, ...]:
    """The modules of a block that `modules_in_block_to_quantize` lists, () when it is absent.

    optimum writes a list of lists, in the order in which they were quantized, and matches the ends
    of names; AutoRound writes one list.
    """
    field = "modules_in_block_to_quantize"
    found = settings.get(field) or []
    nested = found if isinstance(found, list) else [found]
    names = [name for part in nested for name in (part if isinstance(part, list) else [part])]
    if nested is not found or not all(isinstance(name, str) and name for name in names):
        raise unlike(where, field, found, "a list of module names, or a list of such lists")
    check_count(where, f"names in {field}", len(names), MOST_PATTERNS)
    return tuple(dict.fromkeys(names))


def scheme_of(where: str, settings: dict[str, Any], zero_offset: int) -> WeightScheme:
    """The scheme that `bits`, `group_size`, `sym` and `desc_act` describe."""
    problems = Problems()
    width = problems.get(bits, where, settings, BITS)
    group = problems.get(group_size, where, settings)
    symmetric = problems.get(flag, where, settings, "sym", True)
    act_order = problems.get(flag, where, settings, "desc_act", False)
    by_gptqmodel = problems.get(_by_gptqmodel, settings)
    problems.raise_all()
    assert width is not None
    assert group is not None
    return WeightScheme(
        format="gptq",
        bits=width,
        group_size=group,
        symmetric=bool(symmetric),
        act_order=bool(act_order),
        zero_offset=zero_offset,
        zero_carry=bool(zero_offset and not symmetric and by_gptqmodel),
    )


def _by_gptqmodel(settings: dict[str, Any]) -> bool:
    """GPTQModel makes v1 zero points by subtracting 0x11111111 from words of v2."""
    quantizer = mapping("gptq", settings, "meta").get("quantizer")
    return "gptqmodel" in str(quantizer).lower()


def expected_tensors(module: str, n: int, k: int, scheme: WeightScheme) -> dict[str, Expected]:
    words = (torch.int32,)
    groups, b = scheme.groups(k), scheme.bits
    return {
        f"{module}.qweight": Expected(shape=(-(-k * b // 32), n), dtypes=words),
        f"{module}.qzeros": Expected(shape=(groups, -(-n * b // 32)), dtypes=words),
        f"{module}.scales": Expected(shape=(groups, n), dtypes=FLOATS),
        f"{module}.g_idx": Expected(shape=(k,), dtypes=words, required=scheme.act_order),
    }


def read_slice(
    checkpoint: Checkpoint,
    reader: SliceReader,
    module: str,
    scheme: WeightScheme,
    rows: Features,
    columns: Features,
) -> QuantizedSlice:
    """Read a rectangle. With act-order its columns may touch any group, so all groups are read.

    Raises DamagedError E-QUANT-GIDX; E-QUANT-LABEL when symmetric zero points contradict the label
    of the file, E-QUANT-ZEROS when they are neither v1's nor v2's.
    """
    entries = checkpoint.entries
    k = entries[f"{module}.qweight"].shape[0] * 32 // scheme.bits
    g_idx = group_index(reader, entries.get(f"{module}.{GROUP_INDEX}"), scheme)
    taken, groups = column_groups(columns, scheme, k, g_idx)
    scales = reader.read(entries[f"{module}.scales"], taken, rows).T
    return QuantizedSlice(
        stored=packed_rows(reader, entries[f"{module}.qweight"], scheme.bits, rows, columns),
        scales=scales,
        zeros=_zeros(reader, entries[f"{module}.qzeros"], scheme, taken, rows),
        groups=groups,
    )


def pack(module: str, weight: WholeWeight, scheme: WeightScheme) -> dict[str, torch.Tensor]:
    """The tensors that store a weight; inverse of reading all of it."""
    k = weight.codes.shape[1]
    middle, top = 1 << (scheme.bits - 1), (1 << scheme.bits) - 1
    zeros = weight.zeros
    if zeros is None:
        zeros = torch.full(weight.scales.shape, middle, dtype=torch.uint8)
    if scheme.zero_carry:
        stored_words = add_to_words(pack_words(zeros.T, scheme.bits), -_ones(scheme.bits))
    else:
        stored = ((zeros.int() - scheme.zero_offset) & top).to(torch.uint8)
        stored_words = pack_words(stored.T, scheme.bits)
    g_idx = weight.g_idx
    if g_idx is None:
        g_idx = (torch.arange(k) // scheme.group_width(k)).int()
    return {
        f"{module}.qweight": pack_words(weight.codes, scheme.bits).T,
        f"{module}.qzeros": stored_words,
        f"{module}.scales": weight.scales.T,
        f"{module}.g_idx": g_idx,
    }


def _zeros(
    reader: SliceReader, entry: TensorEntry, scheme: WeightScheme, groups: Features, rows: Features
) -> torch.Tensor | None:
    """Zero points uint8 [n, g]; None where every one is the middle code."""
    bits, middle, top = scheme.bits, 1 << (scheme.bits - 1), (1 << scheme.bits) - 1
    if scheme.zero_carry:
        return read_packed_columns(reader, entry, bits, groups, rows, add=_ones(bits)).T
    stored = read_packed_columns(reader, entry, bits, groups, rows).T
    if not scheme.symmetric:
        if scheme.zero_offset and bool((stored == top).any()):
            log.warning(
                "%s: a stored zero point of %d in a v1 file means 0 here, as in AutoGPTQ; other "
                "engines read %d",
                entry.name,
                top,
                top + 1,
            )
        return (stored + scheme.zero_offset) & top
    if bool((stored == middle - scheme.zero_offset).all()):
        return None
    other = 1 - scheme.zero_offset
    found = sorted(set(stored.unique().tolist()))
    labels = {offset: label for label, offset in ZERO_OFFSETS.items()}
    if found == [middle - other]:
        raise DamagedError(
            "E-QUANT-LABEL",
            f"{entry.name}: stored zero points are {found[0]}, as in a {labels[other]} file, "
            f"but the config says {labels[scheme.zero_offset]}. Set checkpoint_format to "
            f'"{labels[other]}" in config.json (and quantize_config.json)',
        )
    raise DamagedError(
        "E-QUANT-ZEROS",
        f"{entry.name}: the config says symmetric, but stored zero points are "
        f"{', '.join(map(str, found[:8]))} instead of {middle - scheme.zero_offset}. If the model "
        "was quantized with sym=False, set sym to false in config.json",
    )


def _ones(bits: int) -> int:
    """A word with 1 in every element: 0x11111111 or 0x01010101."""
    return sum(1 << shift for shift in range(0, 32, bits))
