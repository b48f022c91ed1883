"""Fields of config.json that families read differently, with the defaults of transformers."""

from __future__ import annotations

import logging
from typing import Any

from isobit.errors import NotSupportedError

from ..checkpoint.settings import shown
from .config_fields import VALUE, ConfigFields

log = logging.getLogger("isobit.shard")

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "LLaMAForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
LAYER_KINDS = ("full_attention", "sliding_attention")
DEFAULT_WINDOW, DEFAULT_FULL_LAYERS = 4096, 28
DEFAULT_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
DEFAULT_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
DEFAULT_HEAD_SIZE = {"qwen3": 128}
BIAS_FIELDS: dict[str, tuple[str, ...]] = {
    "llama": ("attention_bias", "mlp_bias"),
    "mistral": (),
    "qwen2": (),
    "qwen3": ("attention_bias",),
}
"""The fields by which a family gets biases beside those that all of its models have."""


def read_family(fields: ConfigFields) -> str:
    """The family that `architectures` names or, where it is absent, `model_type`.

    Raises NotSupportedError E-MODEL-ARCH at once: what other fields mean is not known then.
    """
    config = fields.values
    names, kind = config.get("architectures"), str(config.get("model_type"))
    known = {family: name for name, family in reversed(FAMILIES.items())}
    if names in (None, []) and kind in known:
        log.warning(
            "config.json names no architecture; model_type %r says %s, as for transformers",
            kind,
            known[kind],
        )
        names = [known[kind]]
    names = [str(name) for name in names] if isinstance(names, list) else [str(names or "")]
    family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    inner = config.get("text_config")
    if family is None or (isinstance(inner, dict) and "hidden_size" not in config):
        wraps = ""
        if isinstance(inner, dict):
            wraps = (
                f", a wrapper around a text model (text_config, model_type "
                f"{shown(inner.get('model_type'))}),"
            )
        raise NotSupportedError(
            "E-MODEL-ARCH",
            f"config.json: architecture {shown(', '.join(names)) if any(names) else '(none given)'}"
            f"{wraps} is not supported. Supported: {', '.join(known.values())}",
        )
    if len({FAMILIES.get(name, name) for name in names}) > 1:
        fields.offence(
            "misused",
            "E-MODEL-ARCH",
            f"architectures names {', '.join(map(shown, names))}, which are different models "
            f"(transformers takes model_type {shown(config.get('model_type'))}). Leave one",
        )
    if kind in known and kind != family:
        fields.offence(
            "misused",
            "E-MODEL-ARCH",
            f"architectures {known[family]!r} and model_type {kind!r} contradict each other "
            "(transformers takes model_type). Correct one of them",
        )
    return family


def read_kv_heads(fields: ConfigFields, family: str, heads: int) -> int:
    """num_key_value_heads: null is as many as heads, and an absent one the family's default."""
    default = heads
    if "num_key_value_heads" not in fields.values:
        default = DEFAULT_KV_HEADS.get(family, heads)
    before = fields.count
    kv_heads = fields.integer("num_key_value_heads", default)
    if heads % kv_heads and fields.count == before:
        fields.offence(
            "damaged",
            VALUE,
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}",
        )
    return kv_heads


def read_head_size(fields: ConfigFields, family: str, hidden: int, heads: int) -> int:
    """head_dim, without it the family's default or an equal share of hidden_size."""
    default = DEFAULT_HEAD_SIZE.get(family)
    before = fields.count
    if default is None and fields.values.get("head_dim") is None:
        default = max(1, hidden // heads)
        if hidden % heads and not before:
            fields.offence(
                "damaged",
                VALUE,
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads} and there "
                "is no head_dim",
            )
    size = fields.integer("head_dim", default)
    if size % 2 and not fields.count:
        fields.offence("damaged", VALUE, f"head_dim {size} is odd")
    return size


def read_biases(fields: ConfigFields, family: str) -> tuple[bool, bool, bool]:
    """Which products have a bias: (q, k, v), o, (gate, up, down).

    A field that the family does not read is ignored with a warning, as by transformers.
    """
    attention = fields.flag("attention_bias", family == "qwen2")
    mlp = fields.flag("mlp_bias", False)
    read = {
        "llama": (attention, attention, mlp),
        "mistral": (False, False, False),
        "qwen2": (True, False, False),
        "qwen3": (attention, attention, False),
    }[family]
    for key, value, used in (("attention_bias", attention, read[0]), ("mlp_bias", mlp, read[2])):
        if value != used:
            log.warning(
                "config.json: %s is %s, and is ignored: %s models have %s there, in transformers "
                "too",
                key,
                str(value).lower(),
                family,
                "biases" if used else "no biases",
            )
    if fields.values.get("bias") is True and "attention_bias" not in fields.values:
        log.warning(
            "config.json: bias is true, and no %s model reads that field. If the files have "
            "q_proj.bias and o_proj.bias, it has to be called attention_bias",
            family,
        )
    return read


def read_windows(fields: ConfigFields, family: str, layers: int) -> tuple[int, ...]:
    """Window per layer. The defaults are those of transformers; Llama has no windows at all, and
    Mistral the same one in every layer."""
    config = fields.values
    qwen = family.startswith("qwen")
    kinds = config.get("layer_types") if qwen else None
    if fields.count:
        layers = 1
    elif kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        count = len(kinds) if isinstance(kinds, list) else shown(kinds)
        fields.offence(
            "damaged",
            VALUE,
            f"layer_types names {count} layers, num_hidden_layers says {layers}",
        )
        kinds = None
    if odd := [kind for kind in kinds or () if kind not in LAYER_KINDS]:
        fields.offence(
            "not-supported" if isinstance(odd[0], str) else "damaged",
            VALUE,
            f"layer_types has {shown(odd[0])}. Supported: {', '.join(LAYER_KINDS)}",
        )
    sliding = fields.flag("use_sliding_window", False) if qwen else family == "mistral"
    full = not sliding or config.get("sliding_window", DEFAULT_WINDOW) is None
    if not qwen:
        _warn_of_layer_types(config.get("layer_types"), LAYER_KINDS[not full], family)
    if full:
        return (0,) * layers
    window = fields.integer("sliding_window", DEFAULT_WINDOW)
    if not isinstance(kinds, list):
        first = fields.integer("max_window_layers", DEFAULT_FULL_LAYERS) if qwen else 0
        kinds = [LAYER_KINDS[n >= first] for n in range(layers)]
    return tuple(window if kind == LAYER_KINDS[1] else 0 for kind in kinds)


def _warn_of_layer_types(kinds: Any, kind: str, family: str) -> None:
    """Where every layer is of one kind whatever the config says, say so."""
    if isinstance(kinds, list) and any(each != kind for each in kinds):
        log.warning(
            "config.json: layer_types is ignored: all layers of this %s model have %s, in "
            "transformers too",
            family,
            kind,
        )
