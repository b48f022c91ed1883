"""Quantizing and reading with GPTQModel, for GPTQ and AWQ."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .models import CALIBRATION, VOCABULARY, token_ids


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
