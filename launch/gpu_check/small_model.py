"""A small random model, written without transformers, on one GPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ...kernels.gpu.card import Card
from ...kernels.gpu.device import Gpu
from ...kernels.step.kv_cache import PAGE
from ...kernels.step.step import Step
from ...runtime.collectives.gather import GatherCollectives
from ...runtime.forward.decoder import Decoder
from ...runtime.trace.tracer import Tracer
from ...shard.checkpoint.checkpoint import open_checkpoint
from ...shard.checkpoint.safetensors_writer import SafetensorsWriter
from ...shard.contents.expected_tensors import stored_intermediate_size
from ...shard.load.load import load_rank
from ...shard.model.spec import read_spec
from ...shard.plan.plan import PlanSettings, make_plan
from ...shard.quantize.folder import quantize_folder
from ...shard.quantize.scheme import QuantizeSettings
from .place import Place

VOCABULARY = 66
PAGES = 2
MOST_ROWS = 16


def save_model(folder: Path, at: Place) -> tuple[Path, Path]:
    """A random dense Qwen2 with biases, and the same with int4 weights in groups."""
    hidden, head = at.sizes.hidden, at.sizes.head
    inner, kv = 3 * hidden // 2, hidden // 2
    layers = 1 if at.rehearsal else 2
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": kv // head,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": PAGES * PAGE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    dense, int4 = folder / "dense", folder / "int4"
    dense.mkdir()
    (dense / "config.json").write_text(json.dumps(config))
    file = SafetensorsWriter(dense / "model.safetensors", {"format": "pt"})
    for name, tensor in _tensors(hidden, inner, kv, layers).items():
        file.add(name, tensor)
    file.close()
    quantize_folder(dense, int4, QuantizeSettings(bits=4, group_size=at.sizes.group))
    return dense, int4


def _tensors(hidden: int, inner: int, kv: int, layers: int) -> dict[str, torch.Tensor]:
    """Weights as transformers initializes them, biases larger."""
    torch.manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": _random(VOCABULARY, hidden),
        "model.norm.weight": torch.ones(hidden).bfloat16(),
        "lm_head.weight": _random(VOCABULARY, hidden),
    }
    for layer in range(layers):
        own = {
            "input_layernorm.weight": torch.ones(hidden).bfloat16(),
            "post_attention_layernorm.weight": torch.ones(hidden).bfloat16(),
            "self_attn.o_proj.weight": _random(hidden, hidden),
            "mlp.gate_proj.weight": _random(inner, hidden),
            "mlp.up_proj.weight": _random(inner, hidden),
            "mlp.down_proj.weight": _random(hidden, inner),
        }
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            own[f"self_attn.{name}_proj.weight"] = _random(rows, hidden)
            own[f"self_attn.{name}_proj.bias"] = _random(rows, std=0.1)
        tensors |= {f"model.layers.{layer}.{name}": tensor for name, tensor in own.items()}
    return tensors


def _random(*shape: int, std: float = 0.02) -> torch.Tensor:
    return torch.randn(shape).mul_(std).bfloat16()


def open_decoder(
    model: Path, card: Card, *, eager: bool, pages: int = PAGES, tracer: Tracer | None = None
) -> Decoder:
    """One rank with the whole model on the GPU, its cache full of zeros."""
    spec, checkpoint = read_spec(model), open_checkpoint(model)
    plan = make_plan(spec, PlanSettings(), stored_intermediate_size(checkpoint))
    gpu = Gpu(card, most_rows=MOST_ROWS, eager=eager)
    decoder = Decoder(
        spec,
        plan,
        0,
        load_rank(checkpoint, spec, plan, 0, spec.torch_dtype, gpu),
        GatherCollectives(plan, 0),
        tracer or Tracer(None),
        dtype=spec.torch_dtype,
        kv_pages=pages,
        device=gpu,
    )
    for cache in decoder.caches:
        cache.keys.zero_(), cache.values.zero_()
    return decoder


def step_of(first: int, tokens: list[int]) -> Step:
    """The next tokens of one sequence, all of them sampled."""
    positions = torch.arange(first, first + len(tokens))
    return Step(
        tokens=torch.tensor(tokens),
        positions=positions.int(),
        slots=positions,
        sequence=torch.zeros(len(tokens), dtype=torch.int32),
        block_tables=torch.arange(PAGES, dtype=torch.int32)[None],
        sampled=torch.arange(len(tokens)),
    )
