"""Which scheme each weight of a checkpoint is quantized with: the terms, without any format."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from isobit.errors import InputError

from ..patterns import found_in, matches

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
class Targets:
    """Which modules a rule is for; any of these will do.

    `names`: full names. `parts`: text anywhere in the name. `suffixes`: how the name ends.
    `patterns`: regular expressions that match from the start of the name; `anywhere`: within it;
    both were checked by patterns.check_pattern. `classes`: torch classes, "Linear" among them.
    With `within` the name has to begin with one of these too.
    """

    names: frozenset[str] = frozenset()
    parts: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    anywhere: tuple[str, ...] = ()
    classes: frozenset[str] = frozenset()
    within: tuple[str, ...] = ()

    def match(self, module: str) -> bool:
        """Whether a module such as model.layers.0.mlp.up_proj is meant."""
        if self.within and not module.startswith(self.within):
            return False
        return (
            module in self.names
            or not self.classes.isdisjoint(_classes(module))
            or any(part in module for part in self.parts)
            or module.endswith(self.suffixes)
            or any(matches(pattern, module) for pattern in self.patterns)
            or any(found_in(pattern, module) for pattern in self.anywhere)
        )


LINEAR = Targets(classes=frozenset({"Linear"}))
HEAD = Targets(names=frozenset({"lm_head"}))
EMBEDDING = "model.embed_tokens"


def _classes(module: str) -> tuple[str, ...]:
    """The torch classes of a module that holds a matrix."""
    return ("Embedding" if module == EMBEDDING else "Linear", "Module")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Modules that `targets` match have `scheme`; None leaves them dense."""

    targets: Targets
    scheme: WeightScheme | None


@dataclass(frozen=True, kw_only=True)
class QuantizationSpec:
    """The quantization of a checkpoint: the first rule that matches a module decides.

    A module that none matches is dense. `file` is the one that says so.
    """

    method: str
    rules: tuple[Rule, ...]
    evidence: str
    file: str = "config.json"

    def scheme(self, module: str) -> WeightScheme | None:
        """Return the scheme of a module such as model.layers.0.mlp.up_proj; None means dense."""
        if module not in self._found:
            rule = next((rule for rule in self.rules if rule.targets.match(module)), None)
            self._found[module] = None if rule is None else rule.scheme
        return self._found[module]

    @cached_property
    def _found(self) -> dict[str, WeightScheme | None]:
        """Schemes by module: hundreds of patterns are matched once a module."""
        return {}


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
    rules = (Rule(targets=HEAD, scheme=None), Rule(targets=LINEAR, scheme=scheme))
    return QuantizationSpec(
        method="assumed", rules=rules, evidence=f"--quantization {name} --group-size {group_size}"
    )
