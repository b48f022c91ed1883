"""Mixed precision beside plain INT4 of the same size: KL divergence from the dense model.

    python -m bench.mixed [--json] > docs/measurements/DATE-mixed.json

The example model, and the same model with outlier features (tests/pathologies.py), quantized by
`isobit quantize` to nearest and by GPTQ in groups of 32, and scored as `isobit evaluate` does. Text
is Python's own standard library: some files to calibrate with, others to score. Then whether the
divergences of single products add up to that of the model: widths chosen at random, predicted and
measured on the text of calibration.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from isobit.launch.text.calibration_text import calibration_text
from isobit.launch.text.samples import cut_samples
from isobit.launch.text.text_files import read_texts
from isobit.launch.tokenizer.tokenizer import Tokenizer
from isobit.runtime.calibration.sensitivity import SensitivitySettings, measure_sensitivity
from isobit.runtime.engine.engine import Engine
from isobit.runtime.evaluation.logits_file import LogitsFile
from isobit.runtime.evaluation.score_samples import Exchange, positions_of, score
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings
from isobit.shard.quantize.folder import quantize_folder
from isobit.shard.quantize.fused import fused_products
from isobit.shard.quantize.mixed import MixedWidths, ProductWidth
from isobit.shard.quantize.scheme import QuantizeSettings
from isobit.shard.quantize.source import open_dense
from tests.pathologies import SOURCE, make

LIBRARY = Path(sysconfig.get_path("stdlib"))
CALIBRATION = [LIBRARY / name for name in ("argparse.py", "ast.py", "asyncio/base_events.py")]
SCORED = [LIBRARY / name for name in ("tarfile.py", "zipfile.py")]
SAMPLES, LENGTH = 64, 256
SUMMED_SAMPLES = 16
SCORED_SAMPLES, SCORED_LENGTH = 12, 512
GROUP = 32
TEXT = [option for path in CALIBRATION for option in ("--text", str(path))]
TEXT += ["--samples", str(SAMPLES), "--length", str(LENGTH)]

FIRST_AND_LAST = ["--keep", "layers.0.*=8", "--keep", "layers.4.*=8"]
AS_FAR_AS_5_BITS = ["layers.0.self_attn.*", "layers.4.self_attn.[qkv]*"]
ROWS: dict[str, list[str]] = {
    "INT4": [],
    "INT4, groups of 16": ["--group-size", "16"],
    "first and last layers at 8 bits, as far as 5 bits reach": [
        option for pattern in AS_FAR_AS_5_BITS for option in ("--keep", f"{pattern}=8")
    ],
    "mixed, --budget 5": ["--budget", "5"],
    "first and last layers at 8 bits": FIRST_AND_LAST,
    "mixed, --budget 6.1": ["--budget", "6.1"],
}
METHODS = ("absmax", "gptq")
RANDOM_WIDTHS = 8


class Reference:
    """The logits of a dense model on some samples, for others to be compared with."""

    def __init__(self, model: Path, samples: list[list[int]], folder: Path) -> None:
        self._samples, self._path = samples, folder / "logits"
        rows, vocabulary = positions_of(samples), open_dense(model).spec.vocab_size
        self._path.unlink(missing_ok=True)
        LogitsFile(path=self._path, vocabulary=vocabulary).reserve(rows)
        self._score(model, "write")

    def divergence(self, model: Path) -> float:
        """Mean KL divergence of a model from the reference in nats."""
        return fmean(self._score(model, "read"))

    def _score(self, model: Path, mode: str) -> list[float]:
        with Engine(model, EngineSettings(), LocalLauncher()) as engine:
            return score(engine, self._samples, Exchange(path=self._path, mode=mode)).divergences


def bits_per_weight(model: Path, folder: Path) -> float:
    """Bits of codes, scales and zero points for each weight of the layers, from the files."""
    source, header = open_dense(model), folder / "model.safetensors"
    with header.open("rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    modules = {module.name for each in fused_products(source.spec) for module in each.modules}
    counted = [
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in entries.items()
        if name.rpartition(".")[0] in modules and not name.endswith(("weight_shape", "bias"))
    ]
    return 8 * sum(counted) / sum(each.weights for each in fused_products(source.spec))


def comparison(name: str, model: Path, folder: Path) -> list[dict[str, Any]]:
    tokenizer = Tokenizer(model, "Text is cut into tokens by the model's own")
    texts = read_texts(SCORED)
    samples = cut_samples(tokenizer, SCORED, texts, SCORED_LENGTH, SCORED_SAMPLES)
    reference, rows = Reference(model, samples, folder), []
    for method in METHODS:
        for title, options in ROWS.items():
            out = folder / f"{name}-{method}-{len(rows)}"
            command = [
                "isobit",
                "quantize",
                str(model),
                str(out),
                "--method",
                method,
                "--no-evaluate",
            ]
            # The last of two sizes counts.
            command += ["--group-size", str(GROUP), *options, "--json"]
            command += TEXT if method == "gptq" or "--budget" in options else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            mixed = json.loads(done.stdout).get("mixed", {})
            rows.append(
                {
                    "model": name,
                    "method": method,
                    "title": title,
                    "bits": bits_per_weight(model, out),
                    "kl": reference.divergence(out),
                    "predicted_kl": mixed.get("predicted_kl"),
                }
            )
            print(shown(rows[-1]), file=sys.stderr)
    return rows


def additivity(name: str, model: Path, folder: Path) -> list[dict[str, Any]]:
    """The sum of divergences of single products beside the divergence of the model."""
    source, stored = open_dense(model), QuantizeSettings(group_size=GROUP)
    samples = calibration_text(model, CALIBRATION, SUMMED_SAMPLES, LENGTH).samples
    settings = SensitivitySettings(stored=stored, method=None, tokens=samples.numel())
    products = fused_products(source.spec)
    costs = measure_sensitivity(source, products, samples, settings, folder / "costs")
    reference = Reference(model, samples.tolist(), folder)
    generator, rows = torch.Generator().manual_seed(0), []
    wanted = [{each.name: bits for each in products} for bits in (4, 8)]
    for _ in range(RANDOM_WIDTHS):
        picked = torch.randint(3, (len(products),), generator=generator).tolist()
        wanted.append({p.name: (4, 8, 16)[i] for p, i in zip(products, picked, strict=True)})
    for number, widths in enumerate(wanted):
        mixed = MixedWidths(
            budget=16,
            average=0,
            kl=sum(costs[each][bits] for each, bits in widths.items()),
            products={
                module: ProductWidth(bits=widths[each.name], kl={})
                for each in products
                for module in each.names
            },
        )
        out = folder / f"{name}-sum-{number}"
        quantize_folder(model, out, dataclasses.replace(stored, mixed=mixed))
        title = ("all at 4 bits", "all at 8 bits")[number] if number < 2 else "at random"
        found = {"predicted_kl": mixed.kl, "kl": reference.divergence(out)}
        rows.append({"model": name, "title": title, **found})
        print(shown(rows[-1]), file=sys.stderr)
    return rows


def shown(row: dict[str, Any]) -> str:
    bits, predicted = row.get("bits"), row["predicted_kl"]
    line = f"{row['model']:9} {row.get('method', ''):7} {row['title']:56}"
    line += "" if bits is None else f" {bits:.3f} bits"
    line += f"  KL {row['kl']:.4f}"
    return line if predicted is None else f"{line}  predicted {predicted:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"plain": SOURCE, "outliers": make("outliers", folder / "outliers")}
        rows = [row for each in models for row in comparison(each, models[each], folder)]
        sums = [row for each in models for row in additivity(each, models[each], folder)]
    if as_json:
        print(json.dumps({"group_size": GROUP, "rows": rows, "sums": sums}, indent=1))


if __name__ == "__main__":
    main()
