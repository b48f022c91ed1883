"""What several tests need: the shipped models, small random ones, and a decoder in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from isobit.runtime.batch import pages_for
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.decoder import Decoder, StepInput
from isobit.runtime.trace import Tracer
from isobit.shard.checkpoint import open_checkpoint
from isobit.shard.load import load_rank
from isobit.shard.plan import PlanSettings, make_plan
from isobit.shard.spec import DTYPES, read_spec
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
DENSE = ROOT / "examples" / "stdlib-qwen2"
INT4 = ROOT / "examples" / "stdlib-qwen2-int4"


def all_logits(model: Path, ids: list[int], dtype: str, layout: str = "pad") -> torch.Tensor:
    """Logits of every position, float32 [T, V], from a decoder of degree 1 in this process."""
    spec = read_spec(model)
    plan = make_plan(spec, PlanSettings(layout=layout))  # type: ignore[arg-type]
    weights = load_rank(open_checkpoint(model), spec, plan, 0, DTYPES[dtype])
    pages = pages_for(len(ids))
    decoder = Decoder(
        spec,
        plan,
        0,
        weights,
        GatherCollectives(plan, 0),
        Tracer(False),
        dtype=DTYPES[dtype],
        kv_pages=pages,
    )
    rows = torch.arange(len(ids))
    step = StepInput(
        tokens=torch.tensor(ids),
        positions=rows.int(),
        slots=rows,
        owner=torch.zeros(len(ids), dtype=torch.int32),
        block_tables=torch.arange(pages, dtype=torch.int32)[None],
        sampled=rows,
    )
    return decoder.forward(step)[1]


def save_random_model(folder: Path, model: Any) -> Path:
    """Save a transformers model with random weights, biases and norms included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.08 * noise)
    model.save_pretrained(folder)
    return folder


def copy_model(source: Path, target: Path, **config: Any) -> Path:
    """Copy a model folder, changing fields of config.json."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    text = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**text, **config}))
    return target


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def isobit(
    *arguments: str, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "isobit.launch.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )
