"""What the algorithms return goes through the formats and comes back unchanged."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.checkpoint.safetensors_file import SliceReader
from isobit.shard.formats import awq, gptq, pack_quantized, quantized_format
from isobit.shard.formats.scheme import WeightScheme
from isobit.shard.quantize.absmax import quantize_absmax
from isobit.shard.quantize.gptq import GptqSettings, quantize_gptq

from .calibration import hessian, inputs, weight

N, K = 32, 96
H, W = hessian(inputs(300, K)), weight(N, K, torch.float16)
PACKERS = {"gptq": gptq.pack, "awq": awq.pack, "pack-quantized": pack_quantized.pack}


def read_back(folder, whole, scheme: WeightScheme) -> torch.Tensor:
    """The dequantized weight, float32 [N, K], as the reader of the format finds it."""
    tensors = PACKERS[scheme.format]("m", whole, scheme)
    save_file({n: each.contiguous() for n, each in tensors.items()}, folder / "model.safetensors")
    with SliceReader() as reader:
        piece = quantized_format(scheme.format).read_slice(
            open_checkpoint(folder), reader, "m", scheme, slice(0, N), slice(0, K)
        )
    middle = 1 << (scheme.bits - 1)
    zeros = middle if piece.zeros is None else piece.zeros.float()[:, piece.groups]
    return (piece.codes.float() - zeros) * piece.scales.float()[:, piece.groups]


@pytest.mark.parametrize("zero_offset", [0, 1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gptq", "pack-quantized"])
def test_gptq(tmp_path, name, bits, group_size, act_order, symmetric, zero_offset):
    settings = GptqSettings(
        bits=bits, group_size=group_size, symmetric=symmetric, desc_act=act_order
    )
    whole = quantize_gptq(W, H, settings).weight
    scheme = WeightScheme(
        format=name,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        act_order=act_order,
        zero_offset=zero_offset if name == "gptq" else 0,
    )
    assert torch.equal(read_back(tmp_path, whole, scheme), whole.dequantize(bits))


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(tmp_path, symmetric):
    whole = quantize_absmax(W, 4, 32, symmetric=symmetric)
    scheme = WeightScheme(format="awq", bits=4, group_size=32, symmetric=symmetric)
    assert torch.equal(read_back(tmp_path, whole, scheme), whole.dequantize(4))
