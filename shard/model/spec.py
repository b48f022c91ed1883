"""The shape of a model, read from config.json: Llama, Mistral, Qwen2 and Qwen3 (dense)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isobit.errors import InputError, NotSupportedError

from ..checkpoint.settings import read_config, shown
from ..formats.config import (
    check_agreement,
    companion_settings,
    quantization_from_config,
)
from ..formats.scheme import QuantizationSpec, WeightScheme
from .config_fields import ConfigFields
from .families import (
    DEFAULT_POSITIONS,
    read_biases,
    read_family,
    read_head_size,
    read_kv_heads,
    read_windows,
)
from .rotary import RotarySpec
from .rotary_config import read_rotary
from .stop_ids import config_stop_ids, read_stop_ids

SILU = ("silu", "swish")
"""Two names of one function in transformers."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder-only model. Sizes are in elements.

    `max_positions` is the longest sequence that is run, in tokens, and `position_limit` the longest
    that may be asked for. `windows` holds one sliding-window length per layer, 0 where attention is
    full. `embedding` names the module that the table of embeddings is stored as.
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
    position_limit: int
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
    """Build a ModelSpec from the contents of config.json, for the length it has by default.

    Raises one error that names all that is wrong. NotSupportedError: E-MODEL-ARCH,
    E-CONFIG-ROPE, E-CONFIG-ACT, E-CONFIG-DTYPE for what isobit does not run. DamagedError:
    E-CONFIG-VALUE, E-CONFIG-ROPE for values that no model has. InputError for two fields that
    contradict each other. Further what quantization_from_config raises.
    """
    fields = ConfigFields(config)
    family = read_family(fields)
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    kv_heads = read_kv_heads(fields, family, heads)
    head_size = read_head_size(fields, family, hidden, heads)
    layers = fields.integer("num_hidden_layers")
    vocabulary = fields.integer("vocab_size")
    positions = fields.integer("max_position_embeddings", DEFAULT_POSITIONS[family])
    if (activation := fields.text("hidden_act", "silu")) not in SILU:
        fields.offence(
            "not-supported",
            "E-CONFIG-ACT",
            f"hidden_act {shown(activation)} is not implemented. Implemented: {', '.join(SILU)}",
        )
    qkv_bias, o_bias, mlp_bias = read_biases(fields, family)
    rotary = read_rotary(fields, head_size, positions)
    spec = ModelSpec(
        family=family,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocab_size=vocabulary,
        max_positions=positions,
        position_limit=rotary.longest(positions),
        norm_eps=_norm_eps(fields),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=family == "qwen3",
        windows=read_windows(fields, family, layers),
        rotary=rotary,
        dtype=_dtype(fields),
        stop_ids=config_stop_ids(fields, vocabulary) or (),
        quantization=None,
    )
    fields.raise_if_any()
    quantization = quantization_from_config(config, quantize_config)
    length = rotary.default_length(positions)
    return dataclasses.replace(at_length(spec, length), quantization=quantization)


def read_spec(model: Path, max_model_len: int | None = None) -> ModelSpec:
    """Build the ModelSpec of a model folder for sequences of up to `max_model_len` tokens.

    Stop tokens of generation_config.json count too. Raises as spec_from_config, at_length and
    read_stop_ids do.
    """
    config = read_config(model)
    companion = companion_settings(model)
    check_agreement(config, companion)
    spec = spec_from_config(config, companion)
    named = None if config.get("eos_token_id") is None else spec.stop_ids
    stop = read_stop_ids(model, named, spec.vocab_size)
    if stop.generation is not None:
        spec = dataclasses.replace(spec, stop_ids=stop.ids)
    return spec if max_model_len is None else at_length(spec, max_model_len)


def at_length(spec: ModelSpec, length: int) -> ModelSpec:
    """The spec for sequences of up to `length` tokens; rotary factors are chosen by it.

    Raises E-PLAN-LENGTH: InputError for a length that the model has no positions for,
    NotSupportedError where dynamic scaling would have to change its factors on the way.
    """
    if spec.rotary.kind == "dynamic" and length > spec.position_limit:
        raise NotSupportedError(
            "E-PLAN-LENGTH",
            f"--max-model-len {length}: dynamic rotary scaling changes all factors with the length "
            f"beyond {spec.position_limit} tokens, and that is not implemented. Run up to "
            f"--max-model-len {spec.position_limit}",
        )
    if not 1 <= length <= spec.position_limit:
        raise InputError(
            "E-PLAN-LENGTH",
            f"--max-model-len {length}: the model has positions for 1 to {spec.position_limit} "
            "tokens (max_position_embeddings in config.json, with its rotary scaling)",
        )
    return dataclasses.replace(spec, max_positions=length, rotary=spec.rotary.at_length(length))


def _norm_eps(fields: ConfigFields) -> float:
    """rms_norm_eps; null is none, for transformers neither."""
    default = None if "rms_norm_eps" in fields.values else 1e-6
    return fields.number("rms_norm_eps", default, 0, 1, above=False)


def _dtype(fields: ConfigFields) -> str:
    key = "dtype" if fields.values.get("dtype") is not None else "torch_dtype"
    name = fields.text(key, "float32").removeprefix("torch.")
    known = getattr(torch, name, None)
    # torch has two names for some, and transformers takes either: half, float.
    name = str(known).removeprefix("torch.") if isinstance(known, torch.dtype) else name
    if name not in DTYPES:
        fields.offence(
            "not-supported" if isinstance(known, torch.dtype) else "damaged",
            "E-CONFIG-DTYPE",
            f"{key} {shown(name)} is not supported. Supported: {', '.join(DTYPES)}",
        )
    return name
