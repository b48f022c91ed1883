"""The table of cases: what ../README.md describes, as calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .awq import awq, awq_gptqmodel
from .bnb import bitsandbytes
from .ct import compressed_tensors, input_args, weight_args
from .expected import Expected
from .gptq import gptq, gptq_apart, gptq_nibbles
from .models import Shape

LLAMA, QWEN2 = Shape(), Shape("qwen2", "bfloat16")
LLAMA_1, QWEN2_1 = Shape(layers=1), Shape("qwen2", "bfloat16", layers=1)
WIDE = Shape(layers=1, hidden=96, head_size=16, intermediate=96)  # every N a multiple of 32
BLOCKS_64 = Shape(layers=1, hidden=64, head_size=32, heads=4, intermediate=192)
BLOCKS_64_MORE = Shape(layers=1, hidden=64, head_size=16, heads=4, intermediate=320)
INT4 = {"bits": 4, "group_size": 16, "sym": True, "desc_act": False}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EVERY_LINEAR = {"targets": ["Linear"]}

CASES: dict[str, Callable[[Path], Expected]] = {
    "gptq-v1": partial(
        gptq,
        shape=Shape(layers=1, hidden=96, head_size=16, intermediate=160),
        **INT4 | {"group_size": 32},
    ),
    "gptq-v2": partial(gptq, shape=QWEN2, **INT4, format="gptq_v2"),
    "gptq-int8": partial(gptq, shape=LLAMA_1, **INT4 | {"bits": 8}),
    "gptq-v2-asymmetric": partial(gptq, shape=QWEN2_1, **INT4 | {"sym": False}, format="gptq_v2"),
    "gptq-v1-asymmetric-words": partial(gptq, shape=LLAMA_1, **INT4 | {"sym": False}),
    "gptq-v1-asymmetric-nibbles": partial(gptq_nibbles, shape=LLAMA_1, group_size=16),
    "gptq-act-order": partial(gptq, shape=Shape(intermediate=176), **INT4 | {"desc_act": True}),
    "gptq-act-order-apart": partial(gptq_apart, shape=QWEN2_1, group_size=16),
    "gptq-one-group": partial(gptq, shape=LLAMA_1, **INT4 | {"group_size": -1}),
    "gptq-k-tail": partial(gptq, shape=Shape(layers=1, hidden=72), **INT4),
    "gptq-dynamic": partial(
        gptq,
        shape=Shape("qwen2", "bfloat16", intermediate=96),
        **INT4,
        dynamic={
            r"-:model\.layers\.0\.self_attn\..*": {},
            r"+:.*\.1\.mlp\.down_proj": {"bits": 8, "group_size": 32},
        },
    ),
    "awq": partial(awq, shape=WIDE, group_size=32),
    "awq-narrow": partial(awq, shape=QWEN2_1, group_size=16, by_hand=True),
    "awq-not-converted": partial(
        awq, shape=WIDE, group_size=32, skip=["self_attn.k_proj", "down_proj"]
    ),
    "awq-gptqmodel": partial(awq_gptqmodel, shape=BLOCKS_64, group_size=32),
    "ct-int4": partial(
        compressed_tensors,
        shape=Shape(dtype="bfloat16", layers=1),
        groups={"group_0": EVERY_LINEAR | {"weights": weight_args(num_bits=4, group_size=16)}},
    ),
    "ct-int4-asymmetric": partial(
        compressed_tensors,
        shape=QWEN2_1,
        groups={
            "group_0": EVERY_LINEAR
            | {"weights": weight_args(num_bits=4, group_size=16, symmetric=False)}
        },
    ),
    "ct-int8-channel": partial(
        compressed_tensors,
        shape=LLAMA_1,
        groups={"group_0": EVERY_LINEAR | {"weights": weight_args(num_bits=8)}},
    ),
    "ct-act-order": partial(
        compressed_tensors,
        shape=LLAMA_1,
        groups={
            "group_0": EVERY_LINEAR
            | {"weights": weight_args(num_bits=4, group_size=16, actorder="group")}
        },
    ),
    "ct-two-groups": partial(
        compressed_tensors,
        shape=LLAMA,
        groups={
            "group_0": {
                "targets": ["re:.*self_attn.*"],
                "weights": weight_args(num_bits=8, group_size=16),
            },
            "group_1": {
                "targets": ["re:.*(gate|up|down)_proj$"],
                "weights": weight_args(num_bits=4, group_size=16),
            },
        },
        ignore=["model.layers.0.self_attn.o_proj", "re:.*layers.1.mlp.down_proj"],
    ),
    "ct-w8a8-dynamic": partial(
        compressed_tensors,
        shape=QWEN2,
        groups={
            "group_0": EVERY_LINEAR
            | {
                "weights": weight_args(num_bits=8),
                "input_activations": input_args(strategy="token", dynamic=True),
            }
        },
    ),
    "ct-w8a8-static": partial(
        compressed_tensors,
        shape=LLAMA_1,
        groups={
            "group_0": EVERY_LINEAR
            | {
                "weights": weight_args(num_bits=8),
                "input_activations": input_args(strategy="tensor", dynamic=False),
            }
        },
    ),
    "bnb-int8": partial(bitsandbytes, shape=QWEN2_1, load_in_8bit=True),
    "bnb-nf4": partial(bitsandbytes, shape=BLOCKS_64, **NF4),
    "bnb-nf4-nested": partial(
        bitsandbytes, shape=BLOCKS_64_MORE, **NF4, bnb_4bit_use_double_quant=True
    ),
    "bnb-nf4-straddling": partial(bitsandbytes, shape=QWEN2_1, **NF4),
}
OLDER = {"ct-act-order"}  # compressed-tensors removed actorder "group" in 0.20
