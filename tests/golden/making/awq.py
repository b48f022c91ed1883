"""AWQ: by AutoAWQ, and one case by GPTQModel."""

from __future__ import annotations

import importlib.util
import sys
import types
from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from .expected import Expected
from .models import Shape, dense, projections, skew, write_model
from .packing import pack_awq
from .with_gptqmodel import gptqmodel_quantize


@cache
def import_autoawq() -> types.SimpleNamespace:
    """AutoAWQ's quantizer and linear module, without its models, which newer transformers break."""
    spec = importlib.util.find_spec("awq")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("autoawq")
    root = Path(spec.submodule_search_locations[0])
    for name in ("awq", "awq.models"):
        stub = types.ModuleType(name)
        stub.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = stub
    from awq.models._config import AwqConfig
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.quantize.quantizer import AwqQuantizer
    from awq.utils.module import exclude_layers_to_not_quantize
    from awq.utils.packing_utils import dequantize_gemm

    return types.SimpleNamespace(
        config=AwqConfig,
        linear=WQLinear_GEMM,
        round=AwqQuantizer.pseudo_quantize_tensor,
        exclude=exclude_layers_to_not_quantize,
        dequantize=dequantize_gemm,
    )


def awq_weights(folder: Path, group_size: int) -> dict[str, Tensor]:
    """The weights as AutoAWQ reads them, with the scales in fp32 so that no product rounds."""
    dequantize = import_autoawq().dequantize
    tensors = load_file(folder / "model.safetensors")
    return {
        name: dequantize(
            tensors[f"{name}.qweight"],
            tensors[f"{name}.qzeros"],
            tensors[f"{name}.scales"].float(),
            4,
            group_size,
        ).T.contiguous()
        for name in (key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight"))
    }


def awq(
    folder: Path,
    shape: Shape,
    group_size: int,
    by_hand: bool = False,
    skip: list[str] | None = None,
) -> Expected:
    """Rounded and packed by AutoAWQ; `by_hand` packs here, for N that AutoAWQ cannot."""
    autoawq = import_autoawq()
    settings = autoawq.config(q_group_size=group_size, modules_to_not_convert=skip)
    model, tensors = skew(dense(shape)), {}
    for name, linear in autoawq.exclude(dict(projections(model)), skip).items():
        linear.half()
        linear.weight.data, scales, zeros = autoawq.round(
            types.SimpleNamespace(group_size=group_size, zero_point=True, w_bit=4),
            linear.weight.data,
        )
        scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
        if by_hand:
            spread = zeros.long().repeat_interleave(group_size, 0)
            divided = linear.weight.T.float() / scales.float().repeat_interleave(group_size, 0)
            codes = (divided.round().long() + spread).clamp(0, 15)
            packed = {
                "qweight": pack_awq(codes),
                "qzeros": pack_awq(zeros.long()),
                "scales": scales,
            } | ({} if linear.bias is None else {"bias": linear.bias.detach().clone()})
        else:
            packed = autoawq.linear.from_linear(
                linear, 4, group_size, scales=scales, zeros=zeros
            ).state_dict()
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
    model.to(shape.torch_dtype)
    write_model(folder, model, tensors, settings.to_transformers_dict())
    return Expected(awq_weights(folder, group_size))


def awq_gptqmodel(folder: Path, shape: Shape, group_size: int) -> Expected:
    """AWQ with its search for scales, quantized and written by GPTQModel."""
    gptqmodel_quantize(
        folder, dense(shape), bits=4, group_size=group_size, sym=False, method="awq", format="gemm"
    )
    return Expected(awq_weights(folder, group_size))
