"""Which scheme each weight of a checkpoint is quantized with: the terms, without any format."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..kernels.errors import InputError

CHANNEL = -1


@dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """How one weight is quantized.

    `format` names the reader in shard/formats. `group_size` CHANNEL (-1) means one group per output
    row. `act_order`: a `g_idx` tensor says which group each input feature belongs to.
    `zero_offset` is what the file's stored zero points lack: 1 in GPTQ v1, else 0; with
    `zero_carry` it was subtracted from whole words, so that a borrow ran into the neighbour.
    `activation` is
    "float", "int8-dynamic" (scale per token) or "int8-static" (scale in the file).
    """

    format: str
    bits: int
    group_size: int
    symmetric: bool = True
    act_order: bool = False
    zero_offset: int = 0
    zero_carry: bool = False
    activation: str = "float"

    def groups(self, k: int) -> int:
        """Number of groups G of a weight with K = k; the last one may be shorter."""
        return 1 if self.group_size == CHANNEL else -(-k // self.group_size)

    def group_width(self, k: int) -> int:
        """Input features that share a scale in a weight with K = k."""
        return k if self.group_size == CHANNEL else self.group_size

    @property
    def bound_group(self) -> int | None:
        """The group size that binds where a row-parallel weight may be cut; None when none does."""
        if self.group_size == CHANNEL or self.format == "bnb-nf4":
            return None
        return self.group_size


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Modules that `targets` match have `scheme`; None leaves them dense."""

    targets: tuple[str, ...]
    scheme: WeightScheme | None


@dataclass(frozen=True, kw_only=True)
class QuantizationSpec:
    """The quantization of a checkpoint: the first rule whose target matches a module decides.

    A target is the class name "Linear", a "re:" pattern matched from the start of the module's
    name, "in:" and a part of the name, or the name or its last components.
    """

    method: str
    rules: tuple[Rule, ...]
    evidence: str

    def scheme(self, module: str) -> WeightScheme | None:
        """Return the scheme of a module such as model.layers.0.mlp.up_proj; None means dense."""
        for rule in self.rules:
            if any(_matches(target, module) for target in rule.targets):
                return rule.scheme
        return None


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if pattern.startswith("in:"):
        return pattern[3:] in module
    if pattern == "Linear":
        return not module.endswith("embed_tokens")
    return module == pattern or module.endswith("." + pattern)


def assumed_quantization(name: str, group_size: int) -> QuantizationSpec:
    """The quantization that a user asks to assume: "int4" or "int8" with a group size or -1.

    Raises InputError E-QUANT-SCHEME.
    """
    if name not in ("int4", "int8") or (group_size <= 0 and group_size != CHANNEL):
        raise InputError(
            "E-QUANT-SCHEME",
            f"--quantization {name} --group-size {group_size}: expected int4 or int8, and a "
            "positive group size or -1",
        )
    scheme = WeightScheme(format="assumed", bits=int(name[3:]), group_size=group_size)
    rules = (Rule(targets=("lm_head",), scheme=None), Rule(targets=("Linear",), scheme=scheme))
    return QuantizationSpec(
        method="assumed", rules=rules, evidence=f"--quantization {name} --group-size {group_size}"
    )
