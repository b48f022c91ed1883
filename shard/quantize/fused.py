"""Products that engines fuse into one, and so must share a width: q, k and v; gate and up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..formats import quantized_format
from ..formats.expected import FLOATS
from ..formats.scheme import WeightScheme
from ..model.spec import ModelSpec
from ..plan.modules import LinearModule, layer_modules
from .layer import INPUTS
from .scheme import scale_dtype


@dataclass(frozen=True, kw_only=True)
class FusedProducts:
    """Products of one layer that have the same width; o and down are alone.

    vLLM runs q, k, v as one product and refuses members of different schemes ("vLLM requires all
    to use the same scheme", compressed_tensors/utils.py).
    """

    layer: int
    modules: tuple[LinearModule, ...]

    @property
    def name(self) -> str:
        """The name of the first module, which stands for all."""
        return self.modules[0].name

    @property
    def names(self) -> list[str]:
        return [module.name for module in self.modules]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(module.n * module.k for module in self.modules)


def fused_products(spec: ModelSpec) -> list[FusedProducts]:
    """All products of the layers, layer by layer."""
    return [
        FusedProducts(layer=layer, modules=tuple(modules[short] for short in names))
        for layer in range(spec.layers)
        for modules in [layer_modules(spec, layer)]
        for names in INPUTS.values()
    ]


def stored_bits(module: LinearModule, scheme: WeightScheme | None, dtype_bits: int) -> int:
    """Bits of all tensors that store a weight: codes, scales, zero points; or of a dense weight.

    `dtype_bits` are those of an element of the dense weight, and of a scale where the format leaves
    its dtype open. The 16 bytes in which pack-quantized repeats the weight's shape are left out.
    """
    n, k = module.n, module.k
    if scheme is None:
        return n * k * dtype_bits
    if (dtype := scale_dtype(scheme)) is not None:
        dtype_bits = 8 * dtype.itemsize
    tensors = quantized_format(scheme.format).expected_tensors(module.name, n, k, scheme)
    return sum(
        math.prod(tensor.shape)
        * (dtype_bits if tensor.dtypes == FLOATS else 8 * tensor.dtypes[0].itemsize)
        for name, tensor in tensors.items()
        if not name.endswith(".weight_shape")
        and (tensor.required or not name.endswith(".weight_zero_point"))
    )
