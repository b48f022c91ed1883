"""How fast a rank loads its weights, by format, with the files in the page cache.

    python -m bench.loading [--folder /tmp] [--threads 2] [--json]

Writes a Qwen2 of 0.66 billion parameters once per format (INT4 in groups of 128, and bfloat16) and
loads all of it at degree 1, each time in a process of its own. The plain read of the same file in
the same run is the yardstick. `extra` is the peak of memory above what the weights take at the end.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from isobit.kernels import ops
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.checkpoint.writer import FolderWriter
from isobit.shard.contents.expected_tensors import norm_sizes
from isobit.shard.formats import awq, gptq, pack_quantized
from isobit.shard.formats.codes import WholeWeight
from isobit.shard.formats.scheme import WeightScheme
from isobit.shard.load.load import dummy_rank, load_rank
from isobit.shard.model.spec import read_spec, spec_from_config
from isobit.shard.plan.modules import layer_modules
from isobit.shard.plan.plan import PlanSettings, make_plan

from .checkpoint_tools import read_all
from .shape import SHAPE

RUNS = 5
GROUP = 128
QUANTIZATION = {
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
    },
    "pack-quantized": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": GROUP,
                },
            }
        },
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
    },
    "bfloat16": None,
}
PACK = {"gptq": gptq.pack, "pack-quantized": pack_quantized.pack, "awq": awq.pack}


def settings_of(name: str) -> dict:
    quantization = QUANTIZATION[name]
    return SHAPE if quantization is None else {**SHAPE, "quantization_config": quantization}


def write_random(folder: Path, name: str) -> None:
    """A folder of random weights in one format."""
    spec = spec_from_config(settings_of(name), None)
    generator = torch.Generator().manual_seed(0)
    scheme = WeightScheme(format=name, bits=4, group_size=GROUP, zero_offset=int(name == "gptq"))

    def dense(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(shape, generator=generator)).bfloat16()

    with FolderWriter(folder, "random") as writer:
        for layer in range(spec.layers):
            for module in layer_modules(spec, layer).values():
                if name == "bfloat16":
                    writer.add(f"{module.name}.weight", dense(module.n, module.k))
                else:
                    shape = (module.n, module.k)
                    codes = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
                    scales = torch.rand((module.n, module.k // GROUP), generator=generator) + 0.1
                    whole = WholeWeight(codes=codes, scales=scales.half() / 256, zeros=None)
                    for part, tensor in PACK[name](module.name, whole, scheme).items():
                        writer.add(part, tensor)
                if module.bias:
                    writer.add(f"{module.name}.bias", dense(module.n))
            for norm, size in norm_sizes(spec, layer).items():
                writer.add(norm, torch.ones(size, dtype=torch.bfloat16))
        for table in ("model.embed_tokens.weight", "lm_head.weight"):
            writer.add(table, dense(spec.vocab_size, spec.hidden_size))
        writer.add("model.norm.weight", torch.ones(spec.hidden_size, dtype=torch.bfloat16))
        writer.finish(settings_of(name), folder.parent)


def load_once(folder: Path, threads: int, dummy: bool) -> tuple[float, int, int]:
    """Seconds, bytes read from files, and the peak of memory above what stays."""
    torch.set_num_threads(1)
    ops.set_threads(threads)
    spec = read_spec(folder)
    plan = make_plan(spec, PlanSettings())
    checkpoint = None if dummy else open_checkpoint(folder)
    started = time.perf_counter()
    if checkpoint is None:
        weights = dummy_rank(spec, plan, 0, spec.torch_dtype)
    else:
        weights = load_rank(checkpoint, spec, plan, 0, spec.torch_dtype)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return seconds, weights.bytes_read, peak - pages * resource.getpagesize()


def measure(folder: Path, threads: int, dummy: bool = False) -> tuple[float, int, int]:
    """Medians over processes, so that one load's memory is not the next one's."""
    context = multiprocessing.get_context("spawn")
    runs = []
    for _ in range(RUNS):
        with context.Pool(1) as pool:
            runs.append(pool.apply(load_once, (folder, threads, dummy)))
    seconds, read, extra = zip(*runs, strict=True)
    return statistics.median(seconds), read[0], int(statistics.median(extra))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for form in QUANTIZATION:
            folder = Path(name) / form
            write_random(folder, form)
            plain = []
            for _ in range(RUNS):
                started = time.perf_counter()
                read_all(folder)
                plain.append(time.perf_counter() - started)
            seconds, read, extra = measure(folder, arguments.threads)
            result[form] = {
                "bytes": read,
                "load_s": round(seconds, 3),
                "gb_s": round(read / 1e9 / seconds, 2),
                "plain_read_gb_s": round(read / 1e9 / statistics.median(plain), 2),
                "extra_mb": round(extra / 1e6),
            }
            if form in ("pack-quantized", "bfloat16"):
                seconds, _, _ = measure(folder, arguments.threads, dummy=True)
                result[form]["dummy_s"] = round(seconds, 3)
    if arguments.json:
        print(json.dumps(result))
        return
    for form, found in result.items():
        print(form.ljust(16) + "  ".join(f"{key} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
