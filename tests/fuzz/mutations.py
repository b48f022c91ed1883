"""Copies of model folders with one or two things changed, the same for the same number."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
INT4 = ROOT / "examples" / "stdlib-qwen2-int4"
BASES = (
    *sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/config.json")),
    INT4,
    ROOT / "examples" / "stdlib-qwen2",
)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMES = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json",
         "generation_config.json", "quantize_config.json")  # fmt: skip
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, -5, 3, 7, 2**31, 2**63, 2**64, 10**9, 10**30, 0.5, -0.0, 1e-300,
    1e308, float("inf"), float("nan"), "", "x", "1", "Linear", "re:(.*.*)*z$", "re:(", "\ud800",
    "a" * 300, "\x1b[31mred", "../x", "/etc/passwd", [], {}, [1], [[]], {"a": 1}, ["x", None], DEEP,
)  # fmt: skip
FIELDS: dict[str, tuple[Any, ...]] = {
    "rope_scaling": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "proportional"},
    ),
    "rope_parameters": (
        {"rope_type": "default", "rope_theta": 10000.0}, {"full_attention": {}}, {},
    ),
    "layer_types": (["full_attention"], ["sliding_attention"] * 2, ["linear_attention"] * 2),
    "partial_rotary_factor": (0.5, 1.0, 2.0),
    "sliding_window": (1, 4, 4096, 0),
    "use_sliding_window": (True, False),
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "head_dim": (2, 7, 64),
    "hidden_act": ("swish", "gelu"),
    "torch_dtype": ("float16", "float64", "float8_e4m3fn"),
    "architectures": (["LlamaForCausalLM"], ["Qwen3ForCausalLM"], ["MambaForCausalLM"], []),
    "model_type": ("llama", "mistral", "qwen2", "qwen3"),
    "eos_token_id": (0, [0, 1], 10**30, -5),
    "num_hidden_layers": (1, 300000, 10**9),
    "max_position_embeddings": (1, 16, 2**64),
    "rms_norm_eps": (0, 1, 10**400),
    "quantization_config": (
        {}, {"quant_method": "fp8"}, {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemv"},
    ),
}  # fmt: skip


def make_case(number: int, seed: int, folder: Path) -> tuple[str, Path]:
    """Write the folder of a case; returns what was done to which model."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.choice(list(KINDS))
    base = INT4 if kind in ("tokenizer", "generation config") else draw.choice(BASES)
    for name in NAMES:
        if (base / name).is_file():
            (folder / name).symlink_to(base / name)
    for _ in range(draw.choice((1, 1, 2))):
        KINDS[kind](draw, folder)
    return f"{kind} of {base.name}", folder


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Write a file in place of what is there."""
    remove(path)
    path.write_bytes(data)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def read(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}


def changed(draw: random.Random, value: Any, depth: int = 0) -> Any:
    """One place of a JSON value changed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        action = draw.random()
        if depth < 6 and isinstance(value[key], dict | list) and action < 0.75:
            return {**value, key: changed(draw, value[key], depth + 1)}
        if action < 0.12:
            return {name: each for name, each in value.items() if name != key}
        if action < 0.2:
            odd_key = draw.choice(("\x1b[31m", "\ud800", "x" * 300, "", str(draw.random())))
            return {**value, odd_key: value[key]}
        return {**value, key: odd(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        if isinstance(value[place], dict | list) and draw.random() < 0.7:
            return [*value[:place], changed(draw, value[place], depth + 1), *value[place + 1 :]]
        if draw.random() < 0.3:
            return value[:place] + value[place + 1 :]
        return [*value[:place], odd(draw, value[place]), *value[place + 1 :]]
    return odd(draw, value)


def odd(draw: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return draw.choice((not value, *ODD))
    if isinstance(value, int | float) and draw.random() < 0.5:
        return draw.choice((value + 1, value - 1, value * 2, -value, value * 10**6, value / 2))
    if isinstance(value, str) and draw.random() < 0.3:
        return draw.choice((value.upper(), value + "x", value[:-1]))
    return draw.choice(ODD)


def garble(draw: random.Random, data: bytes) -> bytes:
    """Bytes as a bad disk, an editor or an attacker leaves them."""
    at = draw.randrange(len(data) + 1)
    return draw.choice(
        (
            data[:at],
            data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :],
            data[:at] + draw.choice((b"{", b'"', b"]", b",", b"\0", b"\xff")) + data[at:],
            b"\xef\xbb\xbf" + data,
            b"",
            b"[1]",
            b"null",
            b"[" * 100_000,
        )
    )


def odd_file(draw: random.Random, path: Path) -> None:
    """Something that is no regular file."""
    remove(path)
    draw.choice(
        (
            lambda: os.mkfifo(path),
            path.mkdir,
            lambda: path.symlink_to(path),
            lambda: path.symlink_to("/dev/zero"),
            lambda: None,
        )
    )()


def _json_file(name: str) -> Callable[[random.Random, Path], None]:
    def change(draw: random.Random, folder: Path) -> None:
        path = folder / name
        way = draw.random()
        if way < 0.06:
            odd_file(draw, path)
        elif way < 0.14 and path.is_file():
            replace(path, garble(draw, path.read_bytes()))
        else:
            replace(path, dumped(changed(draw, read(path))))

    return change


def config_field(draw: random.Random, folder: Path) -> None:
    config = read(folder / "config.json")
    if isinstance(config, dict):
        key = draw.choice(list(FIELDS))
        value = draw.choice((*FIELDS[key], *FIELDS[key], *ODD))
        replace(folder / "config.json", dumped({**config, key: value}))


def quantization(draw: random.Random, folder: Path) -> None:
    config = read(folder / "config.json")
    if isinstance(config, dict):
        settings = config.get("quantization_config", {"quant_method": "gptq"})
        settings = changed(draw, settings)
        replace(folder / "config.json", dumped({**config, "quantization_config": settings}))


def split(data: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(data[:8], "little")
    try:
        fields = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return {}, data
    return (fields, data[8 + length :]) if isinstance(fields, dict) else ({}, data)


def joined(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def header(draw: random.Random, folder: Path) -> None:
    path = folder / WEIGHTS
    if not path.is_file():
        return
    data = path.read_bytes()
    fields, body = split(data)
    way = draw.random()
    names = [name for name in fields if name != "__metadata__"]
    if way < 0.05:
        odd_file(draw, path)
    elif way < 0.15:
        replace(path, garble(draw, data[: 8 + 4000]) + data[8 + 4000 :])
    elif way < 0.25:
        replace(path, data[: draw.randrange(len(data))] + b"\0" * draw.choice((0, 0, 9)))
    elif way < 0.3:
        replace(path, data + b"\0" * draw.choice((1, 14000)))
    elif way < 0.5 and names:
        name = draw.choice(names)
        odd_names = (
            name + "x", "model.layers.100000.mlp.x", f"model.layers.{'9' * 5000}.x", "\x1b[2J",
            name.replace("model.", "", 1), "lm_head.weight", "model.layers.0.self_attn.q_proj.bias",
            "model.rotary_emb.inv_freq", "", "x" * 5000,
        )  # fmt: skip
        new = draw.choice(odd_names)
        fields = {new if each == name else each: value for each, value in fields.items()}
        replace(path, joined(dumped(fields), body))
    elif way < 0.6 and names:
        kinds = ("F32", "F16", "BF16", "F64", "I32", "U32", "F8_E4M3", "F4", "I8", "U8", "BOOL")
        name = draw.choice(names)
        if isinstance(fields[name], dict):
            fields[name]["dtype"] = draw.choice(kinds)
        replace(path, joined(dumped(fields), body))
    else:
        replace(path, joined(dumped(changed(draw, fields)), body))


def index(draw: random.Random, folder: Path) -> None:
    fields, _ = (
        split((folder / WEIGHTS).read_bytes()) if (folder / WEIGHTS).is_file() else ({}, b"")
    )
    names = [name for name in fields if name != "__metadata__"]
    file = draw.choice((WEIGHTS, "model-00001-of-00001.safetensors"))
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
    if draw.random() < 0.5 and file != WEIGHTS and (folder / WEIGHTS).exists():
        (folder / WEIGHTS).rename(folder / file)
    replace(folder / INDEX, dumped(changed(draw, content) if draw.random() < 0.8 else content))
    if draw.random() < 0.1:
        odd_file(draw, folder / INDEX)


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "config": _json_file("config.json"),
    "config field": config_field,
    "quantization config": quantization,
    "header": header,
    "more of a header": header,
    "index": index,
    "tokenizer": _json_file("tokenizer.json"),
    "tokenizer config": _json_file("tokenizer_config.json"),
    "generation config": _json_file("generation_config.json"),
    "quantize_config.json": _json_file("quantize_config.json"),
}
