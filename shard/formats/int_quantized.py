"""compressed-tensors "int-quantized": W8A8.

`weight` int8 [N, K]; `weight_scale` [N, 1]. Activations are quantized on the fly: dynamic per token
(no tensor), or static with `input_scale` [1]. https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import torch

from isobit.errors import DamagedError, NotSupportedError

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features, count
from ..checkpoint.safetensors_file import SliceReader
from .codes import QuantizedSlice, WholeWeight, byte_codes
from .expected import FLOATS, Expected
from .scheme import WeightScheme

GROUP_INDEX: str | None = None
ZERO = 128


def expected_tensors(module: str, n: int, k: int, scheme: WeightScheme) -> dict[str, Expected]:
    tensors = {
        f"{module}.weight": Expected(shape=(n, k), dtypes=(torch.int8,)),
        f"{module}.weight_scale": Expected(shape=(n, 1), dtypes=FLOATS),
    }
    if scheme.activation == "int8-static":
        tensors[f"{module}.input_scale"] = Expected(shape=(1,), dtypes=FLOATS)
        zero = Expected(shape=(1,), dtypes=(torch.int8,), required=False)
        tensors[f"{module}.input_zero_point"] = zero
    return tensors


def read_slice(
    checkpoint: Checkpoint,
    reader: SliceReader,
    module: str,
    scheme: WeightScheme,
    rows: Features,
    columns: Features,
) -> QuantizedSlice:
    """Read a rectangle.

    Raises NotSupportedError E-QUANT-SCHEME for a static zero point of activations other than 0,
    DamagedError E-QUANT-ZEROS for one of the weight.
    """
    entries = checkpoint.entries
    input_scale = None
    if scheme.activation == "int8-static":
        input_scale = float(reader.read(entries[f"{module}.input_scale"]))
        zero = entries.get(f"{module}.input_zero_point")
        if zero is not None and int(reader.read(zero)) != 0:
            raise NotSupportedError(
                "E-QUANT-SCHEME",
                f"{module}.input_zero_point is not 0: static asymmetric activations are not read. "
                "Use dynamic per-token activations",
            )
    zero = entries.get(f"{module}.weight_zero_point")
    if zero is not None and bool(reader.read(zero).any()):
        raise DamagedError(
            "E-QUANT-ZEROS",
            f"{module}.weight_zero_point: the config says symmetric, but stored zero points are "
            f"up to {int(reader.read(zero).abs().max())} instead of 0",
        )
    return QuantizedSlice(
        stored=byte_codes(reader, entries[f"{module}.weight"], rows, columns),
        scales=reader.read(entries[f"{module}.weight_scale"], rows, slice(0, 1)),
        zeros=None,
        groups=torch.zeros(count(columns), dtype=torch.int64),
        input_scale=input_scale,
    )


def pack(module: str, weight: WholeWeight, scheme: WeightScheme) -> dict[str, torch.Tensor]:
    """The tensors that store a weight; inverse of reading all of it."""
    tensors = {
        f"{module}.weight": (weight.codes ^ ZERO).view(torch.int8),
        f"{module}.weight_scale": weight.scales,
    }
    if scheme.activation == "int8-static":
        assert weight.input_scale is not None
        tensors[f"{module}.input_scale"] = torch.tensor([weight.input_scale])
    return tensors
