"""Write a small random Llama as a GPTQ 4-bit checkpoint with an awkward number of groups.

    python examples/odd_groups.py /tmp/odd --groups 13
    isobit verify /tmp/odd/gptq --degrees 1,2,3,4 --dtype float32

OUT/gptq is the quantized model, OUT/dense the same weights as float32 numbers: transformers and
isobit must choose the same tokens from either. 13 groups of 128 do not divide by 2, nor do the 107
of Qwen1.5-14B. Other engines fail on the second rank; see "The odd group" in README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from isobit.errors import InputError
from isobit.shard.checkpoint.writer import FolderWriter
from isobit.shard.formats import gptq
from isobit.shard.formats.codes import WholeWeight
from isobit.shard.formats.scheme import WeightScheme
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.modules import layer_modules

GROUP = 128


def config(groups: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": groups * GROUP,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def random_weight(
    n: int, k: int, act_order: bool, symmetric: bool, generator: torch.Generator
) -> tuple[WholeWeight, torch.Tensor]:
    """A random weight as codes, and the float32 [n, k] that they stand for."""
    groups = k // GROUP
    bell = 8 + 2.8 * torch.randn((n, k), generator=generator)
    codes = bell.round().clamp(0, 15).to(torch.uint8)
    spread = 0.5 + torch.rand((n, groups), generator=generator)
    scales = (spread * 0.36 * k**-0.5).half()
    zeros = None
    if not symmetric:
        zeros = torch.randint(7, 10, (n, groups), generator=generator).to(torch.uint8)
    g_idx = (torch.arange(k) // GROUP).int()
    if act_order:
        g_idx = g_idx[torch.randperm(k, generator=generator)]
    columns = g_idx.long()
    zero = 8 if zeros is None else zeros[:, columns].float()
    dense = (codes.float() - zero) * scales.float()[:, columns]
    return WholeWeight(codes=codes, scales=scales, zeros=zeros, g_idx=g_idx), dense


def write(out: Path, groups: int, act_order: bool, symmetric: bool) -> None:
    """Write OUT/gptq and OUT/dense."""
    generator = torch.Generator().manual_seed(groups)
    settings = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": "gptq_v2",
        "lm_head": False,
    }
    base = config(groups)
    spec = spec_from_config(base, None)
    scheme = WeightScheme(
        format="gptq", bits=4, group_size=GROUP, symmetric=symmetric, act_order=act_order
    )
    out.mkdir(parents=True, exist_ok=True)
    with (
        FolderWriter(out / "gptq", "random GPTQ model") as quantized,
        FolderWriter(out / "dense", "random GPTQ model, dequantized") as dense,
    ):
        for layer in range(spec.layers):
            for module in layer_modules(spec, layer).values():
                weight, values = random_weight(module.n, module.k, act_order, symmetric, generator)
                for name, tensor in gptq.pack(module.name, weight, scheme).items():
                    quantized.add(name, tensor)
                dense.add(f"{module.name}.weight", values)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                for writer in (quantized, dense):
                    writer.add(f"model.layers.{layer}.{norm}.weight", torch.ones(256))
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            values = torch.randn((spec.vocab_size, spec.hidden_size), generator=generator)
            for writer in (quantized, dense):
                writer.add(name, values)
        for writer in (quantized, dense):
            writer.add("model.norm.weight", torch.ones(256))
        quantized.finish({**base, "quantization_config": settings}, out)
        dense.finish(base, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write gptq/ and dense/ into")
    parser.add_argument("--groups", type=int, default=13, help="groups of 128 (13)")
    parser.add_argument("--act-order", action="store_true", help="shuffled g_idx (desc_act)")
    parser.add_argument("--asymmetric", action="store_true", help="zero points of their own")
    arguments = parser.parse_args()
    if arguments.groups < 1:
        parser.error("--groups: at least 1")
    out = arguments.out
    try:
        write(out, arguments.groups, arguments.act_order, not arguments.asymmetric)
    except InputError as error:
        parser.error(str(error))
    print(f"{out}/gptq and {out}/dense: intermediate_size {arguments.groups * GROUP}")
    print(f"isobit verify {out}/gptq --degrees 1,2,3,4 --dtype float32 --prompt-ids 1,2,3")
    print(f"isobit generate {out}/dense --prompt-ids 1,2,3 --max-tokens 16   # the same tokens")


if __name__ == "__main__":
    main()
