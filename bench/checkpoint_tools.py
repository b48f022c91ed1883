"""How fast `plan` and `inspect` are: headers of a 70B checkpoint, and 1 GB of INT4 weights.

    python -m bench.checkpoint_tools [--folder /tmp] [--json]

Prints medians of five runs. The plain read of the same files in the same run is the yardstick for
inspect; both have the files in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from isobit.shard.checkpoint.writer import FolderWriter
from isobit.shard.contents.expected_tensors import norm_sizes
from isobit.shard.formats import gptq
from isobit.shard.formats.codes import WholeWeight
from isobit.shard.formats.scheme import WeightScheme
from isobit.shard.inspect.run import inspect_folder
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.modules import layer_modules
from tests.sparse_folder import write_sparse_folder

RUNS = 5
GROUP = 128


def config(layers: int, hidden: int, intermediate: int, heads: int, vocab: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "dtype": "float16",
        "quantization_config": {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
        },
    }


def write_random(folder: Path, settings: dict) -> None:
    """A GPTQ checkpoint with random codes."""
    spec = spec_from_config(settings, None)
    scheme = WeightScheme(format="gptq", bits=4, group_size=GROUP, zero_offset=1)
    generator = torch.Generator().manual_seed(0)
    with FolderWriter(folder, "random") as writer:
        for layer in range(spec.layers):
            for module in layer_modules(spec, layer).values():
                codes = torch.randint(0, 16, (module.n, module.k), generator=generator)
                scales = torch.rand((module.n, module.k // GROUP), generator=generator).half()
                weight = WholeWeight(codes=codes.to(torch.uint8), scales=scales + 0.1, zeros=None)
                for name, tensor in gptq.pack(module.name, weight, scheme).items():
                    writer.add(name, tensor)
            for name, size in norm_sizes(spec, layer).items():
                writer.add(name, torch.ones(size, dtype=torch.float16))
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            writer.add(name, torch.randn(spec.vocab_size, spec.hidden_size).half())
        writer.add("model.norm.weight", torch.ones(spec.hidden_size, dtype=torch.float16))
        writer.finish(settings, folder.parent)


def median_seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def read_all(folder: Path) -> None:
    buffer = bytearray(16 << 20)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        shape = config(80, 8192, 28672, 64, 32000)
        tensors = len(write_sparse_folder(folder / "70b", shape, files=15))
        command = [sys.executable, "-m", "isobit.launch.cli", "plan", str(folder / "70b"), "-tp"]
        plan_s = median_seconds(
            lambda: subprocess.run([*command, "4", "--json"], check=True, capture_output=True)
        )
        write_random(folder / "1gb", config(8, 4096, 14336, 32, 32000))
        size = sum(path.stat().st_size for path in (folder / "1gb").glob("*.safetensors"))
        read_all(folder / "1gb")
        plain_s = median_seconds(lambda: read_all(folder / "1gb"))
        inspect_s = median_seconds(lambda: inspect_folder(folder / "1gb"))
    result = {
        "plan_70b_s": round(plan_s, 2),
        "plan_70b_tensors": tensors,
        "inspect_bytes": size,
        "inspect_mb_s": round(size / 1e6 / inspect_s),
        "plain_read_mb_s": round(size / 1e6 / plain_s),
        "cores": os.cpu_count(),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"plan of a 70B checkpoint ({tensors} tensors): {plan_s:.2f} s, the whole command")
    print(f"inspect of {size / 1e9:.2f} GB: {result['inspect_mb_s']} MB/s")
    print(f"plain read of the same files, from memory: {result['plain_read_mb_s']} MB/s")


if __name__ == "__main__":
    main()
