"""Does the checkpoint hold what its config says? All contradictions at once, from headers alone."""

from __future__ import annotations

from ..kernels.errors import DamagedError
from .checkpoint import Checkpoint
from .formats import dense, quantized_format
from .formats.expected import ANY, FLOATS, Expected
from .modules import LinearModule, head_module, layer_modules
from .spec import ModelSpec


def expected_tensors(spec: ModelSpec) -> dict[str, Expected]:
    """Every tensor that the decoder reads, or may read, by name."""
    wide = spec.hidden_size
    tensors = dense.expected_tensors("model.embed_tokens", spec.vocab_size, wide)
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


def check_checkpoint(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Raise InputError E-CKPT-TENSOR for absent tensors, E-CONFIG-SHAPE for shapes that differ.

    E-CKPT-DTYPE is for a tensor of a dtype that its format does not allow.
    """
    tensors, entries = expected_tensors(spec), checkpoint.entries
    present = [(name, tensor, entries[name]) for name, tensor in tensors.items() if name in entries]
    wrong = [
        f"{name}: config.json implies {list(tensor.shape)}, the file says {list(entry.shape)}"
        for name, tensor, entry in present
        if not same_shape(tensor.shape, entry.shape)
    ]
    if wrong:
        raise DamagedError(
            "E-CONFIG-SHAPE",
            f"{checkpoint.folder}: {len(wrong)} tensors contradict config.json. The tensors are "
            "right, since the model was trained with them: restore config.json from where the "
            f"model came from\n  {_listed(wrong)}",
        )
    wrong = [
        f"{name}: {entry.dtype}, expected {' or '.join(map(str, tensor.dtypes))}"
        for name, tensor, entry in present
        if entry.dtype not in tensor.dtypes
    ]
    if wrong:
        raise DamagedError(
            "E-CKPT-DTYPE",
            f"{checkpoint.folder}: {len(wrong)} tensors have a dtype that the format named in "
            f"config.json does not use\n  {_listed(wrong)}",
        )
    checkpoint.require([name for name, tensor in tensors.items() if tensor.required])


def same_shape(expected: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """A scalar may be stored as [] or [1]; a dimension of ANY has any length."""
    same = len(expected) == len(found) and all(
        e in (ANY, f) for e, f in zip(expected, found, strict=True)
    )
    return same or (expected in ((), (1,)) and found in ((), (1,)))


def _listed(lines: list[str], most: int = 12) -> str:
    rest = f"\n  and {len(lines) - most} more" if len(lines) > most else ""
    return "\n  ".join(lines[:most]) + rest


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
