"""Write the golden checkpoints beside this file with the packages that define their formats.

The tests read what this script wrote and never run it; README.md describes every case, and how
to install the packages. Then

    python tests/golden/make.py [--compressed-tensors-0.15 DIR] [CASE ...]

Every case becomes a folder with config.json, model.safetensors (the quantized model) and
expected.safetensors: `<module>.weight` fp32 [N, K] as the package dequantizes it, `ids` int64 [T]
and `logits` fp32 [T, V]. Seeds are fixed: a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

HERE = Path(__file__).resolve().parent
VOCABULARY, TOKENS = 130, 40
CALIBRATION = {"samples": 16, "length": 64}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word holds column 8c + AWQ_ORDER[i]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "GPTQMODEL_CPU_WORKERS": "2",  # its default, half the cores, is refused on small machines
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # the compiled packer; the plain one writes the same
}


@dataclass(frozen=True)
class Shape:
    architecture: str = "llama"  # untied, no bias; "qwen2" is tied and has biases on q, k and v
    dtype: str = "float16"
    layers: int = 2
    hidden: int = 48
    head_size: int = 8
    intermediate: int = 112
    heads: int = 6
    kv_heads: int = 2

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Expected:
    weights: dict[str, Tensor]  # module -> fp32 [N, K]
    logits: Tensor | None = None  # None: those of the dense model with these weights


# The models


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_ids(seed: int, count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=generator(seed))


def dense(shape: Shape) -> PreTrainedModel:
    """A model with seeded weights, large enough that logits spread over a few units."""
    config = AutoConfig.for_model(
        shape.architecture,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=shape.architecture == "qwen2",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        dtype=shape.dtype,
        **({"head_dim": shape.head_size} if shape.architecture == "llama" else {}),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    source = generator(2026)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=source)
            if name.endswith("norm.weight"):
                noise = 1 + 0.2 * noise
            elif name.endswith("embed_tokens.weight"):
                noise *= 0.3 if config.tie_word_embeddings else 1.0
            elif name.endswith("lm_head.weight"):
                noise *= 0.3
            elif name.endswith(".bias"):
                noise *= 0.5
            else:
                noise /= math.sqrt(parameter.shape[1])
            parameter.copy_(noise)
    model.config.dtype = shape.torch_dtype
    return model.to(shape.torch_dtype).eval()


def projections(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            yield name, module


def skew(model: PreTrainedModel) -> PreTrainedModel:
    """Give some groups only positive and some only negative weights: zero points 0 and 15."""
    with torch.no_grad():
        for _, linear in projections(model):
            linear.weight[::5, :32].abs_()
            linear.weight[2::7, :32].abs_().neg_()
    return model


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tensors: dict[str, Tensor],
    settings: dict[str, Any] | None,
) -> None:
    """Write a model some of whose modules are replaced by `tensors`, named `<module>.<tensor>`."""
    replaced = {name.rpartition(".")[0] for name in tensors}
    kept = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] not in replaced
        and not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    everything = {name: tensor.detach().contiguous() for name, tensor in (kept | tensors).items()}
    save_file(everything, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    if settings is not None:
        model.config.quantization_config = settings
    model.config.save_pretrained(folder)


def dense_logits(folder: Path, weights: dict[str, Tensor]) -> Tensor:
    """Logits in fp32 of the architecture with these weights and the file's other tensors."""
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    state = {
        name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    state |= {f"{module}.weight": weight for module, weight in weights.items()}
    missing = set(model.state_dict()) - set(state)
    if missing - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        raise ValueError(f"{folder.name}: not in the file: {sorted(missing)}")
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(token_ids(7, TOKENS)[None]).logits[0]


# GPTQ, by GPTQModel


def write_tokenizer(folder: Path) -> None:
    """GPTQModel loads no model without a tokenizer; the golden folders do without."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token=None)
    special = {f"{kind}_token": f"t{i}" for i, kind in enumerate(("unk", "bos", "eos", "pad"))}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special).save_pretrained(folder)


def gptqmodel_settings(**settings: Any) -> Any:
    from gptqmodel import QuantizeConfig

    fixed = {"offload_to_disk": False, "pack_impl": "original", "act_group_aware": False}
    return QuantizeConfig(**fixed, **settings)


def gptqmodel_quantize(folder: Path, model: PreTrainedModel, **settings: Any) -> None:
    from gptqmodel import BACKEND, GPTQModel

    method = settings.get("method", "gptq")
    length = CALIBRATION["length"]
    prompts = [
        {
            "input_ids": token_ids(100 + i, length)[None],
            "attention_mask": torch.ones(1, length).long(),
        }
        for i in range(CALIBRATION["samples"])
    ]
    with TemporaryDirectory() as scratch:
        source, result = Path(scratch, "dense"), Path(scratch, "quantized")
        model.save_pretrained(source)
        write_tokenizer(source)
        quantizer = GPTQModel.load(
            str(source), gptqmodel_settings(**settings), device="cpu", dtype=model.dtype
        )
        backend = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH
        quantizer.quantize(prompts, batch_size=1, backend=backend)
        quantizer.save(str(result))
        for name in ("config.json", "model.safetensors"):
            shutil.copy(result / name, folder / name)


def gptqmodel_weights(folder: Path) -> dict[str, Tensor]:
    """The weights as GPTQModel reads them, with the scales in fp32 so that no product rounds."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    with TemporaryDirectory() as scratch:
        copy = Path(scratch, "model")
        shutil.copytree(folder, copy)
        write_tokenizer(copy)
        model = GPTQModel.load(
            str(copy), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
        ).model
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, TorchLinear):
            module.scales = module.scales.float()
            weights[name] = TorchLinear.dequantize_weight(module).T.contiguous()
    return weights


def gptq(folder: Path, shape: Shape, **settings: Any) -> Expected:
    """Quantized, packed and read back by GPTQModel."""
    model = dense(shape)
    gptqmodel_quantize(folder, model if settings["sym"] else skew(model), **settings)
    return Expected(gptqmodel_weights(folder))


def gptq_apart(folder: Path, shape: Shape, group_size: int) -> Expected:
    """Act-order with a g_idx of its own for each module: rounded here, packed by GPTQModel.

    GPTQModel derives g_idx from the inputs, so that q, k and v always get the same one.
    """
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    settings = gptqmodel_settings(bits=4, group_size=group_size, sym=True, desc_act=True)
    model, tensors = dense(shape), {}
    for number, (name, linear) in enumerate(projections(model)):
        n, k = linear.weight.shape
        order = torch.randperm(k, generator=generator(300 + number))
        g_idx = torch.empty(k, dtype=torch.int32)
        g_idx[order] = torch.arange(k, dtype=torch.int32) // group_size
        grouped = linear.weight.float()[:, order].reshape(n, -1, group_size)
        scales = (grouped.abs().amax(2) / 7.5).half().float()
        packed = TorchLinear(
            bits=4,
            group_size=group_size,
            sym=True,
            desc_act=True,
            in_features=k,
            out_features=n,
            bias=linear.bias is not None,
        )
        packed.pack_original(linear.float(), scales, torch.full_like(scales, 8), g_idx)
        convert_gptq_v2_to_v1_format_module(packed, settings)
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.state_dict().items()}
        linear.to(shape.torch_dtype)
    write_model(folder, model, tensors, settings.to_dict())
    return Expected(gptqmodel_weights(folder))


def gptq_nibbles(folder: Path, shape: Shape, group_size: int) -> Expected:
    """v1 with zero points of 0, each stored as a nibble 15 that touches no other: packed here.

    No writer does this (README.md), every reader that works nibble by nibble does. In the style
    of AutoGPTQ: quantize_config.json, and no g_idx.
    """
    model, tensors, weights = dense(shape), {}, {}
    source = generator(400)
    for name, linear in projections(model):
        n, k = linear.weight.shape
        groups = k // group_size
        zeros = torch.randint(16, (groups, n), generator=source)
        spread = zeros.repeat_interleave(group_size, 0)
        noise = 3 * torch.randn(k, n, generator=source)
        codes = (spread + noise.round().long()).clamp(0, 15)
        scales = ((0.5 + torch.rand(groups, n, generator=source)) / (3 * math.sqrt(k))).half()
        tensors[f"{name}.qweight"] = pack_nibbles(codes.T).T
        tensors[f"{name}.qzeros"] = pack_nibbles((zeros - 1) & 15)
        tensors[f"{name}.scales"] = scales
        if linear.bias is not None:
            tensors[f"{name}.bias"] = linear.bias.half()
        weights[name] = ((codes - spread) * scales.float().repeat_interleave(group_size, 0)).T
    write_model(folder, model, tensors, None)
    settings = {
        "bits": 4,
        "group_size": group_size,
        "damp_percent": 0.01,
        "desc_act": False,
        "static_groups": False,
        "sym": False,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": None,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
    }
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return Expected(weights)


def pack_nibbles(codes: Tensor) -> Tensor:
    """int64 [rows, columns] of 0-15 to int32 [rows, columns / 8], low bits first."""
    words = codes.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
    return words.sum(2).to(torch.int32)


# AWQ, by AutoAWQ (and GPTQModel)


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


def pack_awq(codes: Tensor) -> Tensor:
    return pack_nibbles(codes.unflatten(1, (-1, 8))[:, :, AWQ_ORDER].flatten(1))


def awq_gptqmodel(folder: Path, shape: Shape, group_size: int) -> Expected:
    """AWQ with its search for scales, quantized and written by GPTQModel."""
    gptqmodel_quantize(
        folder, dense(shape), bits=4, group_size=group_size, sym=False, method="awq", format="gemm"
    )
    return Expected(awq_weights(folder, group_size))


# compressed-tensors


def weight_args(**settings: Any) -> dict[str, Any]:
    strategy = "group" if "group_size" in settings else "channel"
    return {"type": "int", "symmetric": True, "dynamic": False, "strategy": strategy} | settings


def input_args(**settings: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True} | settings


def compressed_tensors(
    folder: Path, shape: Shape, groups: dict[str, dict[str, Any]], ignore: list[str] | None = None
) -> Expected:
    """Scales from the extremes of each group, as its users' observers do; packed and read by it."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = dense(shape)
    if not all(group["weights"]["symmetric"] for group in groups.values()):
        skew(model)
    inputs = observe(model)
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head", *(ignore or [])])
    apply_quantization_config(model, config)
    for name, linear in projections(model):
        if hasattr(linear, "quantization_scheme"):
            calibrate(linear, inputs[name])
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    (folder / "generation_config.json").unlink()
    schemes = {
        name: linear.quantization_scheme
        for name, linear in projections(model)
        if hasattr(linear, "quantization_scheme")
    }
    weights = compressed_tensors_weights(folder, schemes)
    activations = any(scheme.input_activations for scheme in schemes.values())
    return Expected(weights, compressed_tensors_logits(folder) if activations else None)


def observe(model: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """The smallest and the largest input of every projection over one prompt."""
    extremes: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, _module: Any, args: tuple[Tensor]) -> None:
        extremes[name] = (args[0].amin(), args[0].amax())

    hooks = [
        linear.register_forward_pre_hook(partial(watch, name))
        for name, linear in projections(model)
    ]
    with torch.no_grad():
        model(token_ids(100, CALIBRATION["length"])[None])
    for hook in hooks:
        hook.remove()
    return extremes


@torch.no_grad()
def calibrate(linear: torch.nn.Linear, inputs: tuple[Tensor, Tensor]) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = linear.quantization_scheme
    weight, args = linear.weight.detach(), scheme.weights
    if hasattr(linear, "weight_g_idx"):
        k = weight.shape[1]
        order = torch.randperm(k, generator=generator(500 + k))
        linear.weight_g_idx[order] = torch.arange(k, dtype=torch.int32) // args.group_size
        weight = weight[:, order]
    rows = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
    scale, zero = calculate_qparams(rows.amin(2), rows.amax(2), args)
    linear.weight_scale.copy_(scale)
    linear.weight_zero_point.copy_(zero)
    if hasattr(linear, "input_scale"):
        scale, zero = calculate_qparams(*inputs, scheme.input_activations)
        linear.input_scale.copy_(scale)
        linear.input_zero_point.copy_(zero)


def compressed_tensors_weights(folder: Path, schemes: dict[str, Any]) -> dict[str, Tensor]:
    """The weights as its compressors read them, with the scales in fp32 so that no product rounds.

    transformers cannot load an asymmetric file (README.md), so this goes to the compressor itself.
    """
    from compressed_tensors.compressors import BaseCompressor

    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name, scheme in schemes.items():
        prefix = f"{name}."
        parts = {
            key.removeprefix(prefix): tensor.float() if key.endswith("_scale") else tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        weights[name] = compressor.decompress(parts, scheme)["weight"]
    return weights


def compressed_tensors_logits(folder: Path) -> Tensor:
    """Logits in fp32 through transformers, where activations are quantized before each product."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(token_ids(7, TOKENS)[None]).logits[0]


# bitsandbytes


def bitsandbytes(folder: Path, shape: Shape, **settings: Any) -> Expected:
    """Quantized and written by bitsandbytes through transformers."""
    from transformers import BitsAndBytesConfig

    with TemporaryDirectory() as source:
        dense(shape).save_pretrained(source)
        AutoModelForCausalLM.from_pretrained(
            source,
            quantization_config=BitsAndBytesConfig(**settings),
            dtype=shape.torch_dtype,
            device_map={"": "cpu"},
        ).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    return Expected(bitsandbytes_weights(folder))


def bitsandbytes_weights(folder: Path) -> dict[str, Tensor]:
    """The weights as its plain kernels read them; the CPU kernel errs where blocks cross rows."""
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import QuantState, dequantize_blockwise, int8_vectorwise_dequant

    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name in [key.removesuffix(".weight") for key in tensors if key.endswith("_proj.weight")]:
        weight = tensors[f"{name}.weight"]
        if weight.dtype == torch.int8:
            weights[name] = int8_vectorwise_dequant(weight, tensors[f"{name}.SCB"])
            continue
        prefix = f"{name}.weight."
        parts = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        absmax = state.absmax
        if state.nested:
            absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
        weights[name] = _dequantize_4bit_compute(
            weight.flatten(), absmax, state.code, state.blocksize, state.shape, torch.float32
        )
    return weights


# The cases

LLAMA, QWEN2 = Shape(), Shape("qwen2", "bfloat16")
LLAMA_1, QWEN2_1 = Shape(layers=1), Shape("qwen2", "bfloat16", layers=1)
WIDE = Shape(layers=1, hidden=96, head_size=16, intermediate=96)  # every N a multiple of 32
BLOCKS_64 = Shape(layers=1, hidden=64, head_size=32, heads=4, intermediate=192)
BLOCKS_64_MORE = Shape(layers=1, hidden=64, head_size=16, heads=4, intermediate=320)
INT4 = {"bits": 4, "group_size": 16, "sym": True, "desc_act": False}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EVERY_LINEAR = {"targets": ["Linear"]}

CASES: dict[str, Callable[[Path], Expected]] = {
    "gptq-v1": partial(
        gptq,
        shape=Shape(layers=1, hidden=96, head_size=16, intermediate=160),
        **INT4 | {"group_size": 32},
    ),
    "gptq-v2": partial(gptq, shape=QWEN2, **INT4, format="gptq_v2"),
    "gptq-int8": partial(gptq, shape=LLAMA_1, **INT4 | {"bits": 8}),
    "gptq-v2-asymmetric": partial(gptq, shape=QWEN2_1, **INT4 | {"sym": False}, format="gptq_v2"),
    "gptq-v1-asymmetric-words": partial(gptq, shape=LLAMA_1, **INT4 | {"sym": False}),
    "gptq-v1-asymmetric-nibbles": partial(gptq_nibbles, shape=LLAMA_1, group_size=16),
    "gptq-act-order": partial(gptq, shape=Shape(intermediate=176), **INT4 | {"desc_act": True}),
    "gptq-act-order-apart": partial(gptq_apart, shape=QWEN2_1, group_size=16),
    "gptq-one-group": partial(gptq, shape=LLAMA_1, **INT4 | {"group_size": -1}),
    "gptq-k-tail": partial(gptq, shape=Shape(layers=1, hidden=72), **INT4),
    "gptq-dynamic": partial(
        gptq,
        shape=Shape("qwen2", "bfloat16", intermediate=96),
        **INT4,
        dynamic={
            r"-:model\.layers\.0\.self_attn\..*": {},
            r"+:.*\.1\.mlp\.down_proj": {"bits": 8, "group_size": 32},
        },
    ),
    "awq": partial(awq, shape=WIDE, group_size=32),
    "awq-narrow": partial(awq, shape=QWEN2_1, group_size=16, by_hand=True),
    "awq-not-converted": partial(
        awq, shape=WIDE, group_size=32, skip=["self_attn.k_proj", "down_proj"]
    ),
    "awq-gptqmodel": partial(awq_gptqmodel, shape=BLOCKS_64, group_size=32),
    "ct-int4": partial(
        compressed_tensors,
        shape=Shape(dtype="bfloat16", layers=1),
        groups={"group_0": EVERY_LINEAR | {"weights": weight_args(num_bits=4, group_size=16)}},
    ),
    "ct-int4-asymmetric": partial(
        compressed_tensors,
        shape=QWEN2_1,
        groups={
            "group_0": EVERY_LINEAR
            | {"weights": weight_args(num_bits=4, group_size=16, symmetric=False)}
        },
    ),
    "ct-int8-channel": partial(
        compressed_tensors,
        shape=LLAMA_1,
        groups={"group_0": EVERY_LINEAR | {"weights": weight_args(num_bits=8)}},
    ),
    "ct-act-order": partial(
        compressed_tensors,
        shape=LLAMA_1,
        groups={
            "group_0": EVERY_LINEAR
            | {"weights": weight_args(num_bits=4, group_size=16, actorder="group")}
        },
    ),
    "ct-two-groups": partial(
        compressed_tensors,
        shape=LLAMA,
        groups={
            "group_0": {
                "targets": ["re:.*self_attn.*"],
                "weights": weight_args(num_bits=8, group_size=16),
            },
            "group_1": {
                "targets": ["re:.*(gate|up|down)_proj$"],
                "weights": weight_args(num_bits=4, group_size=16),
            },
        },
        ignore=["model.layers.0.self_attn.o_proj", "re:.*layers.1.mlp.down_proj"],
    ),
    "ct-w8a8-dynamic": partial(
        compressed_tensors,
        shape=QWEN2,
        groups={
            "group_0": EVERY_LINEAR
            | {
                "weights": weight_args(num_bits=8),
                "input_activations": input_args(strategy="token", dynamic=True),
            }
        },
    ),
    "ct-w8a8-static": partial(
        compressed_tensors,
        shape=LLAMA_1,
        groups={
            "group_0": EVERY_LINEAR
            | {
                "weights": weight_args(num_bits=8),
                "input_activations": input_args(strategy="tensor", dynamic=False),
            }
        },
    ),
    "bnb-int8": partial(bitsandbytes, shape=QWEN2_1, load_in_8bit=True),
    "bnb-nf4": partial(bitsandbytes, shape=BLOCKS_64, **NF4),
    "bnb-nf4-nested": partial(
        bitsandbytes, shape=BLOCKS_64_MORE, **NF4, bnb_4bit_use_double_quant=True
    ),
    "bnb-nf4-straddling": partial(bitsandbytes, shape=QWEN2_1, **NF4),
}
OLDER = {"ct-act-order"}  # compressed-tensors removed actorder "group" in 0.20


def make(name: str) -> None:
    torch.use_deterministic_algorithms(True)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    expected = CASES[name](folder)
    logits = expected.logits
    if logits is None:
        logits = dense_logits(folder, expected.weights)
    tensors = {f"{module}.weight": weight for module, weight in expected.weights.items()}
    tensors |= {"ids": token_ids(7, TOKENS), "logits": logits}
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        folder / "expected.safetensors",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--compressed-tensors-0.15", dest="older", metavar="DIR", type=Path)
    parser.add_argument("--here", action="store_true", help="in this process, not one per case")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    for name in arguments.cases or CASES:
        if arguments.here:
            make(name)
            continue
        environment = os.environ | ENVIRONMENT
        if name in OLDER:
            if arguments.older is None:
                print(f"{name}: left as it is, needs --compressed-tensors-0.15")
                continue
            environment["PYTHONPATH"] = str(arguments.older.resolve())
        command = [sys.executable, HERE / "make.py", "--here", name]
        with TemporaryDirectory() as scratch:  # GPTQModel writes logs where it runs
            done = subprocess.run(
                command, env=environment, cwd=scratch, capture_output=True, text=True, check=False
            )
        print(f"{name}: {'made' if done.returncode == 0 else 'failed'}")
        if done.returncode:
            sys.exit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
