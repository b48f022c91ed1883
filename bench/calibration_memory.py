"""How much memory a calibration takes, with layers as large as those of Qwen1.5-14B.

    python -m bench.calibration_memory [--layers 2] [--samples 4] [--length 256] [-tp 1]

The weights of the layers are random, the vocabulary is as large as the real one and mostly a hole
in its file. Prints the largest resident set that any process of the run had.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from isobit.runtime.calibration.calibrate import quantize_calibrated
from isobit.runtime.calibration.job import CalibrateSettings
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.quantize.layer import MethodSettings
from isobit.shard.quantize.scheme import QuantizeSettings
from tests.sparse_folder import write_sparse_folder

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
TOKENS_USED = 4096
ROWS_AT_A_TIME = 512


def make_model(folder: Path, layers: int) -> None:
    """Write a model whose layers, and the embeddings of TOKENS_USED tokens, are random."""
    write_sparse_folder(folder, {**CONFIG, "num_hidden_layers": layers}, files=1)
    generator = torch.Generator().manual_seed(0)
    for name, entry in open_checkpoint(folder).entries.items():
        if name == "lm_head.weight":
            continue
        rows = min(entry.shape[0], TOKENS_USED if "embed" in name else entry.shape[0])
        with entry.file.open("r+b") as file:
            file.seek(entry.begin)
            for begin in range(0, rows, ROWS_AT_A_TIME):
                shape = (min(ROWS_AT_A_TIME, rows - begin), *entry.shape[1:])
                values = 0.02 * torch.randn(shape, generator=generator) + ("norm" in name)
                file.write(values.to(entry.dtype).view(torch.uint8).numpy().tobytes())


def quantize(model: Path, out: Path, arguments: argparse.Namespace) -> None:
    """Quantize on random ids, saying on standard error how far it is."""
    shape = (arguments.samples, arguments.length)
    ids = torch.randint(0, TOKENS_USED, shape, generator=torch.Generator().manual_seed(1))
    settings = CalibrateSettings(
        stored=QuantizeSettings(), method=MethodSettings(method=arguments.method)
    )
    degree = arguments.degree
    quantize_calibrated(
        model,
        out,
        ids,
        settings,
        lambda done, total: print(f"{done} of {total}", file=sys.stderr),
        degree=degree,
        launcher=None if degree == 1 else LocalLauncher(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--method", default="gptq", choices=("gptq", "awq"))
    parser.add_argument("-tp", dest="degree", type=int, default=1)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        quantize(arguments.inside / "model", arguments.inside / "out", arguments)
        return
    with tempfile.TemporaryDirectory(prefix="isobit-memory-") as name:
        make_model(Path(name) / "model", arguments.layers)
        started = time.perf_counter()
        command = [sys.executable, "-m", "bench.calibration_memory", *sys.argv[1:]]
        subprocess.run([*command, "--inside", name], check=True, env={**os.environ})
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        report = {"layers": arguments.layers, "degree": arguments.degree}
        report |= {"peak_bytes": peak, "seconds": round(time.perf_counter() - started)}
        print(json.dumps(report))


if __name__ == "__main__":
    main()
