"""Does the checkpoint hold what its config says? All contradictions at once, from headers alone."""

from __future__ import annotations

from ..kernels.errors import InputError
from .checkpoint import Checkpoint
from .formats import dense, quantized_format
from .modules import LinearModule, head_module, layer_modules
from .spec import ModelSpec


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the decoder reads."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size),
        "model.norm.weight": (spec.hidden_size,),
    }
    if not spec.tied_embeddings:
        shapes |= _module_shapes(spec, head_module(spec))
    for layer in range(spec.layers):
        for name, size in norm_sizes(spec, layer).items():
            shapes[name] = (size,)
        for module in layer_modules(spec, layer).values():
            shapes |= _module_shapes(spec, module)
    return shapes


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


def check_checkpoint(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Raise InputError E-CKPT-TENSOR for absent tensors, E-CONFIG-SHAPE for shapes that differ."""
    shapes = expected_shapes(spec)
    wrong = [
        f"{name}: config.json implies {list(shape)}, the file says "
        f"{list(checkpoint.entries[name].shape)}"
        for name, shape in shapes.items()
        if name in checkpoint.entries and checkpoint.entries[name].shape != shape
    ]
    if wrong:
        raise InputError(
            "E-CONFIG-SHAPE",
            f"{checkpoint.folder}: {len(wrong)} tensors contradict config.json. The tensors are "
            "right, since the model was trained with them: restore config.json from where the "
            "model came from\n  "
            + "\n  ".join(wrong[:12])
            + (f"\n  and {len(wrong) - 12} more" if len(wrong) > 12 else ""),
        )
    checkpoint.require(list(shapes))


def stored_intermediate_size(checkpoint: Checkpoint) -> int | None:
    """The intermediate size according to the first layer's tensors, None when they are absent."""
    up = "model.layers.0.mlp.up_proj"
    shape = checkpoint.first_shape(f"{up}.weight", f"{up}.weight_packed")
    return None if shape is None else shape[0]


def _module_shapes(spec: ModelSpec, module: LinearModule) -> dict[str, tuple[int, ...]]:
    scheme = spec.quantization.scheme(module.name) if spec.quantization else None
    if scheme is None:
        shapes = dense.expected_tensors(module.name, module.n, module.k)
    else:
        form = quantized_format(spec.quantization.format)  # pyright: ignore[reportOptionalMemberAccess]
        shapes = form.expected_tensors(module.name, module.n, module.k, scheme)
    if module.bias:
        shapes = {**shapes, f"{module.name}.bias": (module.n,)}
    return shapes
