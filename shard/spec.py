"""The shape of a model, read from config.json: Llama, Mistral, Qwen2 and Qwen3 (dense)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..kernels.errors import InputError, NotSupportedError
from .formats.config import check_agreement, companion_settings, quantization_from_config
from .quantization import QuantizationSpec, WeightScheme
from .rotary import RotarySpec, rotary_from_config
from .settings import positive_int, positive_number, read_config, read_json

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
LAYER_KINDS = ("full_attention", "sliding_attention")
DEFAULT_WINDOW, DEFAULT_FULL_LAYERS = 4096, 28
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder-only model. Sizes are in elements.

    `windows` holds one sliding-window length per layer, 0 where attention is full. `embedding`
    names the module that the table of embeddings is stored as.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    rotary: RotarySpec
    dtype: str
    stop_ids: tuple[int, ...]
    quantization: QuantizationSpec | None
    embedding: str = "model.embed_tokens"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def scheme(self, module: str) -> WeightScheme | None:
        """How a module's weight is quantized; None means dense."""
        return None if self.quantization is None else self.quantization.scheme(module)


def spec_from_config(config: dict[str, Any], quantize_config: dict[str, Any] | None) -> ModelSpec:
    """Build a ModelSpec from the contents of config.json.

    Raises InputError: E-MODEL-ARCH for an architecture that isobit does not run, E-CONFIG-VALUE,
    E-CONFIG-ROPE, E-CONFIG-ACT, E-CONFIG-DTYPE, and what quantization_from_config raises.
    """
    names = config.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if family is None:
        raise NotSupportedError(
            "E-MODEL-ARCH",
            f"config.json: architecture {', '.join(names) or '(none given)'} is not supported. "
            f"Supported: {', '.join(FAMILIES)}",
        )
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise NotSupportedError(
            "E-CONFIG-ACT", f"config.json: hidden_act {activation!r}, expected 'silu'"
        )
    heads = positive_int(config, "num_attention_heads")
    hidden = positive_int(config, "hidden_size")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise InputError(
            "E-CONFIG-VALUE",
            f"config.json: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {kv_heads}",
        )
    if config.get("head_dim") is None and hidden % heads:
        raise InputError(
            "E-CONFIG-VALUE",
            f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads} "
            "and there is no head_dim",
        )
    head_size = positive_int(config, "head_dim", hidden // heads)
    if head_size % 2:
        raise InputError("E-CONFIG-VALUE", f"config.json: head_dim {head_size} is odd")
    layers = positive_int(config, "num_hidden_layers")
    attention_bias = bool(config.get("attention_bias", False))
    return ModelSpec(
        family=family,
        hidden_size=hidden,
        intermediate_size=positive_int(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocab_size=positive_int(config, "vocab_size"),
        max_positions=positive_int(config, "max_position_embeddings", 2048),
        norm_eps=positive_number(config, "rms_norm_eps", 1e-6, "E-CONFIG-VALUE"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or attention_bias,
        o_bias=family in ("llama", "qwen3") and attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        windows=_windows(config, family, layers),
        rotary=rotary_from_config(config),
        dtype=_dtype(config),
        stop_ids=_stop_ids(config),
        quantization=quantization_from_config(config, quantize_config),
    )


def read_spec(model: Path) -> ModelSpec:
    """Build the ModelSpec of a model folder; raises InputError as spec_from_config does.

    Stop tokens of generation_config.json count too: chat models name their end of turn there.
    """
    config = read_config(model)
    companion = companion_settings(model)
    check_agreement(config, companion)
    spec = spec_from_config(config, companion)
    generation = model / "generation_config.json"
    if generation.is_file():
        stop_ids = sorted({*spec.stop_ids, *_stop_ids(read_json(generation))})
        spec = dataclasses.replace(spec, stop_ids=tuple(stop_ids))
    return spec


def _windows(config: dict[str, Any], family: str, layers: int) -> tuple[int, ...]:
    """Window per layer. The defaults are those of transformers; Llama has no windows at all."""
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        count = len(kinds) if isinstance(kinds, list) else repr(kinds)
        raise InputError(
            "E-CONFIG-VALUE",
            f"config.json: layer_types names {count} layers, num_hidden_layers says {layers}",
        )
    if odd := [kind for kind in kinds or () if kind not in LAYER_KINDS]:
        raise InputError(
            "E-CONFIG-VALUE",
            f"config.json: layer_types has {odd[0]!r}. Supported: {', '.join(LAYER_KINDS)}",
        )
    qwen = family.startswith("qwen")
    off = family == "llama" or (qwen and not config.get("use_sliding_window"))
    if off or config.get("sliding_window", DEFAULT_WINDOW) is None:
        return (0,) * layers
    window = positive_int(config, "sliding_window", DEFAULT_WINDOW)
    if kinds is None:
        first = config.get("max_window_layers", DEFAULT_FULL_LAYERS) if qwen else 0
        if isinstance(first, bool) or not isinstance(first, int):
            raise InputError(
                "E-CONFIG-VALUE",
                f"config.json: max_window_layers is {first!r}, expected an integer",
            )
        kinds = [LAYER_KINDS[n >= first] for n in range(layers)]
    return tuple(window if kind == LAYER_KINDS[1] else 0 for kind in kinds)


def _dtype(config: dict[str, Any]) -> str:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(
            "E-CONFIG-DTYPE",
            f"config.json: dtype {name!r} is not supported. Supported: {', '.join(DTYPES)}",
        )
    return name


def _stop_ids(config: dict[str, Any]) -> tuple[int, ...]:
    stop = config.get("eos_token_id")
    ids = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if any(isinstance(n, bool) or not isinstance(n, int) for n in ids):
        raise InputError(
            "E-CONFIG-VALUE", f"eos_token_id is {stop!r}, expected an integer or a list of them"
        )
    return tuple(ids)
