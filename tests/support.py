"""What several tests need: the shipped models, small random ones, and a decoder in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from isobit.kernels.step.step import Step
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.forward.decoder import Decoder
from isobit.runtime.scheduler.kv_pages import pages_for
from isobit.runtime.trace.tracer import Tracer
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.contents.expected_tensors import stored_intermediate_size
from isobit.shard.contents.stored_head import with_stored_head
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import DTYPES, read_spec
from isobit.shard.plan.plan import PlanSettings, ShardPlan, make_plan

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
DENSE = ROOT / "examples" / "stdlib-qwen2"
INT4 = ROOT / "examples" / "stdlib-qwen2-int4"
PRODUCT = ("isobit", "kernels", "shard", "runtime", "launch")
"""Folders at the root that are in the wheel."""


class ThreadCollectives(GatherCollectives):
    """Ranks as threads of this process: cheap, and the same tree as over gloo."""

    def __init__(self, plan: ShardPlan, rank: int, board: list, barrier: threading.Barrier) -> None:
        super().__init__(plan, rank)
        self._board, self._barrier = board, barrier

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        self._board[self.rank] = tensor
        self._barrier.wait(timeout=60)
        out.copy_(torch.stack(self._board))
        self._barrier.wait(timeout=60)


def all_logits(
    model: Path,
    ids: list[int],
    dtype: str,
    layout: str = "pad",
    degree: int = 1,
    max_model_len: int | None = None,
) -> torch.Tensor:
    """Logits of every position, float32 [T, V], from decoders in this process.

    At a higher degree each rank is a thread; all of them must have the same logits.
    """
    checkpoint = open_checkpoint(model)
    spec = with_stored_head(read_spec(model, max_model_len), checkpoint)
    settings = PlanSettings(degree=degree, layout=layout)  # type: ignore[arg-type]
    plan = make_plan(spec, settings, stored_intermediate_size(checkpoint))
    pages = pages_for(len(ids))
    rows = torch.arange(len(ids))
    step = Step(
        tokens=torch.tensor(ids),
        positions=rows.int(),
        slots=rows,
        sequence=torch.zeros(len(ids), dtype=torch.int32),
        block_tables=torch.arange(pages, dtype=torch.int32)[None],
        sampled=rows,
    )
    board: list = [None] * degree
    barrier = threading.Barrier(degree)

    def run(rank: int) -> torch.Tensor:
        weights = load_rank(checkpoint, spec, plan, rank, DTYPES[dtype])
        decoder = Decoder(
            spec,
            plan,
            rank,
            weights,
            ThreadCollectives(plan, rank, board, barrier),
            Tracer(None),
            dtype=DTYPES[dtype],
            kv_pages=pages,
        )
        return decoder.forward(step)[1]

    with ThreadPoolExecutor(degree) as pool:
        logits = list(pool.map(run, range(degree)))
    assert all(torch.equal(other, logits[0]) for other in logits)
    return logits[0]


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
