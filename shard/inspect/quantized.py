"""The quantized weights of a model and which of their tensors plays which part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..formats import bitsandbytes
from ..formats.scheme import WeightScheme
from ..model.spec import ModelSpec
from ..plan.modules import LinearModule, head_module, layer_modules

Packing = Literal["along k", "rows of k", "awq", "bytes", "nf4"]
"""How codes lie in their tensor: words [N, K/p], words [K/p, N], AWQ's, int8 [N, K], nf4's list."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Last components of tensor names; None where a format has no such tensor.

    `transposed`: scales are [G, N] in the file.
    """

    codes: str
    scales: str
    zeros: str | None = None
    groups: str | None = None
    shape: str | None = None
    packing: Packing
    transposed: bool = False


PARTS = {
    "pack-quantized": Parts(
        codes="weight_packed",
        scales="weight_scale",
        zeros="weight_zero_point",
        groups="weight_g_idx",
        shape="weight_shape",
        packing="along k",
    ),
    "int-quantized": Parts(codes="weight", scales="weight_scale", packing="bytes"),
    "gptq": Parts(
        codes="qweight",
        scales="scales",
        zeros="qzeros",
        groups="g_idx",
        packing="rows of k",
        transposed=True,
    ),
    "awq": Parts(codes="qweight", scales="scales", zeros="qzeros", packing="awq", transposed=True),
    bitsandbytes.INT8: Parts(codes="weight", scales="SCB", packing="bytes"),
    bitsandbytes.NF4: Parts(codes="weight", scales="weight.absmax", packing="nf4"),
}
_NF4_NEEDED = ("weight.absmax", "weight.quant_map", bitsandbytes.STATE)
NESTED_SCALES = "weight.nested_absmax"
_NF4_NESTED = (NESTED_SCALES, "weight.nested_quant_map")


@dataclass(frozen=True, kw_only=True)
class QuantizedModule:
    """A quantized weight [n, k] and where its parts are."""

    name: str
    n: int
    k: int
    scheme: WeightScheme

    @property
    def parts(self) -> Parts:
        return PARTS[self.scheme.format]

    def tensor(self, part: str) -> str:
        """Full name of a part."""
        return f"{self.name}.{part}"

    @property
    def description(self) -> str:
        """Format, width and symmetry: the modules that share these share one line of a table."""
        symmetry = "symmetric" if self.scheme.symmetric else "asymmetric"
        return f"{self.scheme.format} {self.scheme.bits}-bit {symmetry}"

    def companions(self) -> dict[str, bool]:
        """Tensors whose shape config.json does not imply, and whether each must be there."""
        if self.scheme.format != bitsandbytes.NF4:
            return {}
        needed = {self.tensor(part): True for part in _NF4_NEEDED}
        return needed | {self.tensor(part): False for part in _NF4_NESTED}

    def optional_parts(self) -> tuple[str, ...]:
        """Parts beside the codes and scales that are examined where they are present."""
        nested = (NESTED_SCALES,) if self.scheme.format == bitsandbytes.NF4 else ()
        parts = self.parts
        return (*(part for part in (parts.zeros, parts.groups, parts.shape) if part), *nested)


def quantized_modules(spec: ModelSpec) -> list[QuantizedModule]:
    """Every quantized weight of a model, layer by layer."""
    if spec.quantization is None:
        return []
    modules: list[LinearModule] = []
    for layer in range(spec.layers):
        modules += layer_modules(spec, layer).values()
    if not spec.tied_embeddings:
        modules.append(head_module(spec))
    found = []
    for module in modules:
        scheme = spec.quantization.scheme(module.name)
        if scheme is not None:
            found.append(QuantizedModule(name=module.name, n=module.n, k=module.k, scheme=scheme))
    return found
