"""Valid folders are never called damaged, and damaged ones that transformers loads still are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from isobit.shard.checkpoint.checkpoint import INDEX, SINGLE
from isobit.shard.inspect import inspect_folder

from ...random_folder import save_random_folder
from ...support import GOLDEN
from .inspection import codes_of, set_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Q_NORMS = {
    f"model.layers.{n}.self_attn.{name}_norm.weight": torch.ones(8, dtype=torch.bfloat16)
    for n in range(2)
    for name in "qk"
}
MLP_BIASES = {
    f"model.layers.{n}.mlp.{name}_proj.bias": torch.full((size,), 0.5, dtype=torch.bfloat16)
    for n in range(2)
    for name, size in (("gate", 96), ("up", 96), ("down", 64))
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
Change = Callable[[Path], object]


def random_matrix(n: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return (0.08 * torch.randn(n, k, generator=generator)).to(torch.bfloat16)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / SINGLE)


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def edit(**changed: torch.Tensor | None) -> Change:
    """Replace or remove tensors of the single file."""

    def change(folder: Path) -> None:
        tensors = {**tensors_of(folder), **changed}
        save(folder, {name: tensor for name, tensor in tensors.items() if tensor is not None})

    return change


def cast(dtype: torch.dtype) -> Change:
    return lambda folder: save(folder, {n: t.to(dtype) for n, t in tensors_of(folder).items()})


def copy_of_embedding(alone: bool) -> Change:
    def change(folder: Path) -> None:
        tensors = tensors_of(folder)
        tensors[HEAD] = tensors[EMBEDDING].clone()
        if alone:
            del tensors[EMBEDDING]
        save(folder, tensors)

    return change


def sharded(mixed_up: bool = False, keep_single: bool = False, prefix: str = "") -> Change:
    def change(folder: Path) -> None:
        tensors = tensors_of(folder)
        names = sorted(tensors)
        files = {
            f"model-0000{i + 1}-of-00002.safetensors": {n: tensors[n] for n in names[i::2]}
            for i in range(2)
        }
        for file, part in files.items():
            save_file(part, folder / file, metadata={"format": "pt"})
        weight_map = {n: prefix + file for file, part in files.items() for n in part}
        if mixed_up:
            weight_map[names[0]] = weight_map[names[1]]
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if not keep_single:
            (folder / SINGLE).unlink()

    return change


def stale_index(folder: Path) -> None:
    names = dict.fromkeys(tensors_of(folder), "model-00001-of-00009.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


def plain_metadata(folder: Path) -> None:
    save_file(tensors_of(folder), folder / SINGLE, metadata={"format": "pt", "by": "\x1b[31m"})


def unused_file(folder: Path) -> None:
    save_file({"x": torch.ones(3)}, folder / "consolidated.safetensors")


def nothing(folder: Path) -> None:
    del folder


VALID: dict[str, tuple[dict[str, Any], Change]] = {
    "llama": (LLAMA, nothing),
    "qwen2": (QWEN2, nothing),
    "qwen3": (QWEN3, edit(**Q_NORMS)),
    "mistral": (MISTRAL, nothing),
    "mistral with a window": ({**MISTRAL, "sliding_window": 8}, nothing),
    "untied": ({**LLAMA, "tie_word_embeddings": False}, edit(**{HEAD: random_matrix(160, 64)})),
    "tied, a head of its own": (LLAMA, edit(**{HEAD: random_matrix(160, 64)})),
    "tied, an equal head": (LLAMA, copy_of_embedding(alone=False)),
    "tied, the head alone": (LLAMA, copy_of_embedding(alone=True)),
    "attention biases": ({**LLAMA, "attention_bias": True}, nothing),
    "mlp biases": ({**LLAMA, "mlp_bias": True}, edit(**MLP_BIASES)),
    "float16": ({**LLAMA, "torch_dtype": "float16"}, cast(torch.float16)),
    "float32": ({**LLAMA, "torch_dtype": "float32"}, cast(torch.float32)),
    "float32 files of a bfloat16 config": (LLAMA, cast(torch.float32)),
    "dtype instead of torch_dtype": ({**LLAMA, "torch_dtype": None, "dtype": "bfloat16"}, nothing),
    "another head size": ({**LLAMA, "head_dim": 16}, nothing),
    "one KV head": ({**LLAMA, "num_key_value_heads": 1}, nothing),
    "no grouped queries": ({**LLAMA, "num_key_value_heads": 8}, nothing),
    "an odd vocabulary": ({**LLAMA, "vocab_size": 151}, nothing),
    "an odd MLP": ({**LLAMA, "intermediate_size": 91}, nothing),
    "linear rope": ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}, nothing),
    "llama3 rope": ({**LLAMA, "rope_scaling": LLAMA3}, nothing),
    "rope_parameters": (
        {
            **LLAMA,
            "rope_theta": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        nothing,
    ),
    "two files": (LLAMA, sharded()),
    "two files that the index mixes up": (LLAMA, sharded(mixed_up=True)),
    "two files with ./ in front of their names": (LLAMA, sharded(prefix="./")),
    "two files and the single one": (LLAMA, sharded(keep_single=True)),
    "an old index": (LLAMA, stale_index),
    "a file that nothing names": (LLAMA, unused_file),
    "odd metadata": (LLAMA, plain_metadata),
    "one layer": ({**LLAMA, "num_hidden_layers": 1}, nothing),
    "no stop token": ({**LLAMA, "eos_token_id": None}, nothing),
}  # fmt: skip
COMPRESSED = sorted(path.name for path in GOLDEN.glob("ct-*"))
# Written by the packages that define their formats; transformers needs those to read them again.
OTHERS = sorted(
    path.parent.name
    for path in GOLDEN.glob("*/config.json")
    if not path.parent.name.startswith("ct-")
)


@pytest.mark.parametrize("name", VALID)
def test_what_transformers_loads_without_a_complaint_is_not_damaged(tmp_path, name):
    config, change = VALID[name]
    save_random_folder(tmp_path / "m", config)
    change(tmp_path / "m")
    assert_loads_clean(tmp_path / "m")
    report = inspect_folder(tmp_path / "m")
    assert codes_of(report, "error") == set()
    assert report.verdict in ("healthy", "suspicious")


def assert_loads_clean(folder: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", [*COMPRESSED, *OTHERS])
def test_what_the_packages_of_the_formats_write_is_not_damaged(name):
    report = inspect_folder(GOLDEN / name)
    assert report.verdict in ("healthy", "suspicious"), codes_of(report, "error")


def spoil(name: str, value: float) -> Change:
    def change(folder: Path) -> None:
        tensors = tensors_of(folder)
        tensors[name].view(-1)[3] = value
        save(folder, tensors)

    return change


LAYER = "model.layers.1."
INNER = (
    "self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.gate_proj.weight",
    "mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight",
)  # fmt: skip
NAN, INFINITE = float("nan"), float("inf")
LOST = {LAYER + "self_attn.q_proj.bias": torch.ones(64, dtype=torch.bfloat16)}
DAMAGED: dict[str, tuple[Change, str]] = {
    **{f"NaN in {n}": (spoil(LAYER + n, NAN), "E-CKPT-NAN") for n in INNER},
    **{f"infinity in {n}": (spoil(LAYER + n, INFINITE), "E-CKPT-NAN") for n in INNER},
    "NaN in the embedding": (spoil(EMBEDDING, NAN), "E-CKPT-NAN"),
    "NaN in the last norm": (spoil("model.norm.weight", NAN), "E-CKPT-NAN"),
    **{f"no {n}": (edit(**{LAYER + n: None}), "E-CKPT-TENSOR") for n in INNER},
    "no last norm": (edit(**{"model.norm.weight": None}), "E-CKPT-TENSOR"),
    "no embedding": (edit(**{EMBEDDING: None}), "E-CKPT-TENSOR"),
    "untied, and no head": (lambda f: set_config(f, tie_word_embeddings=False), "E-CKPT-TENSOR"),
    "biases that are not there": (lambda f: set_config(f, attention_bias=True), "E-CKPT-TENSOR"),
    "a bias that nothing announces": (edit(**LOST), "E-CKPT-BIAS"),
    "one layer too many": (lambda f: set_config(f, num_hidden_layers=3), "E-CONFIG-SHAPE"),
    "one layer too few": (lambda f: set_config(f, num_hidden_layers=1), "E-CONFIG-SHAPE"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_transformers_loads_all_the_same_is_damaged(tmp_path, name):
    change, code = DAMAGED[name]
    save_random_folder(tmp_path / "m", LLAMA)
    change(tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    report = inspect_folder(tmp_path / "m")
    assert report.verdict == "damaged"
    assert codes_of(report, "error") == {code}


@pytest.mark.parametrize(
    ("name", "label", "code"),
    [
        ("gptq-v1", "gptq_v2", "E-QUANT-LABEL"),
        ("gptq-v2", "gptq", "E-QUANT-LABEL"),
        ("gptq-int8", "gptq_v2", "E-QUANT-LABEL"),
        ("gptq-one-group", "gptq_v2", "E-QUANT-LABEL"),
        ("gptq-k-tail", "gptq_v2", "E-QUANT-LABEL"),
    ],
)
def test_a_wrong_label_is_damage(tmp_path, name, label, code):
    """Loaded by every engine that believes the label; each weight is then off by one step."""
    shutil.copytree(GOLDEN / name, tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    true = settings.get("checkpoint_format") or settings.get("format")
    set_config(
        tmp_path / "m", quantization_config={**settings, "checkpoint_format": label, "format": None}
    )
    assert true != label
    report = inspect_folder(tmp_path / "m")
    assert (report.verdict, codes_of(report, "error")) == ("damaged", {code})


def test_a_truncated_file_is_damage(tmp_path):
    save_random_folder(tmp_path / "m", LLAMA)
    with (tmp_path / "m" / SINGLE).open("r+b") as file:
        file.truncate((tmp_path / "m" / SINGLE).stat().st_size - 1)
    assert codes_of(inspect_folder(tmp_path / "m"), "error") == {"E-CKPT-TRUNCATED"}
