"""The tensors that a config implies, by name."""

from __future__ import annotations

from ..checkpoint.checkpoint import Checkpoint
from ..formats import dense, quantized_format
from ..formats.expected import FLOATS, Expected
from ..model.spec import ModelSpec
from ..plan.modules import LinearModule, head_module, layer_modules


def expected_tensors(spec: ModelSpec) -> dict[str, Expected]:
    """Every tensor that the decoder reads, or may read, by name."""
    wide = spec.hidden_size
    tensors = dense.expected_tensors(spec.embedding, spec.vocab_size, wide)
    tensors["model.norm.weight"] = Expected(shape=(wide,), dtypes=FLOATS)
    if not spec.tied_embeddings:
        tensors |= _module_tensors(spec, head_module(spec))
    for layer in range(spec.layers):
        for name, size in norm_sizes(spec, layer).items():
            tensors[name] = Expected(shape=(size,), dtypes=FLOATS)
        for module in layer_modules(spec, layer).values():
            tensors |= _module_tensors(spec, module)
    return tensors


def norm_sizes(spec: ModelSpec, layer: int) -> dict[str, int]:
    """Full name and length of the norm weights of a layer."""
    prefix = f"model.layers.{layer}."
    sizes = {
        prefix + "input_layernorm.weight": spec.hidden_size,
        prefix + "post_attention_layernorm.weight": spec.hidden_size,
    }
    if spec.qk_norm:
        sizes[prefix + "self_attn.q_norm.weight"] = spec.head_size
        sizes[prefix + "self_attn.k_norm.weight"] = spec.head_size
    return sizes


def stored_intermediate_size(checkpoint: Checkpoint) -> int | None:
    """The intermediate size according to the first layer's tensors, None when they are absent."""
    up = "model.layers.0.mlp.up_proj"
    shape = checkpoint.first_shape(f"{up}.weight", f"{up}.weight_packed")
    if shape is not None:
        return shape[0] if len(shape) == 2 and shape[1] > 1 else None
    shape = checkpoint.first_shape(f"{up}.scales")
    return None if shape is None else shape[-1]


def _module_tensors(spec: ModelSpec, module: LinearModule) -> dict[str, Expected]:
    scheme = spec.scheme(module.name)
    if scheme is None:
        tensors = dense.expected_tensors(module.name, module.n, module.k)
    else:
        form = quantized_format(scheme.format)
        tensors = form.expected_tensors(module.name, module.n, module.k, scheme)
    if module.bias:
        bias = Expected(shape=(module.n,), dtypes=FLOATS)
        tensors = {**tensors, f"{module.name}.bias": bias}
    return tensors
