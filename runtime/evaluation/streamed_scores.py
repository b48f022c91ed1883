"""Scores of two models that never lie in memory: layer by layer, their heads side by side at last.

The same ops as those of ForwardPass, so the same bits as from the engine at any degree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from isobit.errors import InputError

from ...kernels import ops
from ...shard.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ...shard.checkpoint.safetensors_file import SliceReader
from ...shard.load.load import load_layer
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..calibration.calibrate import embed
from ..collectives.gather import GatherCollectives
from ..engine.preflight import prepare
from ..forward.head_runner import open_head
from ..forward.layer_runner import LayerRunner
from ..settings.engine import EngineSettings
from .score import judge_rows
from .score_samples import MOST_LOGITS_BYTES, Scores, check_samples

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class StreamedModel:
    """A model folder that is run piece by piece, in its own dtype, at degree 1."""

    folder: Path
    spec: ModelSpec
    plan: ShardPlan
    checkpoint: Checkpoint

    def residual(self, samples: torch.Tensor, on_sample: Callable[[], None]) -> torch.Tensor:
        """The residual stream behind the last layer, float32 [samples, length, hidden].

        Memory holds that and one layer. `on_sample` is called for every sample of every layer.
        """
        spec, dtype = self.spec, self.spec.torch_dtype
        with SliceReader() as reader:
            rows = [embed(self.checkpoint, spec, reader, ids) for ids in samples]
        residual = torch.stack(rows)
        collectives = GatherCollectives(self.plan, 0)
        for layer in range(spec.layers):
            weights = load_layer(self.checkpoint, spec, self.plan, 0, layer, dtype)
            length = samples.shape[1]
            runner = LayerRunner(spec, self.plan, 0, weights, layer, dtype, length, collectives)
            for sample in residual:
                sample.copy_(runner.run(sample))
                on_sample()
            runner.close()
        return residual


def open_streamed(folder: Path) -> StreamedModel:
    """Open a folder in any format that runs; raises InputError as `prepare` does."""
    spec, plan = prepare(folder, EngineSettings())
    return StreamedModel(folder=folder, spec=spec, plan=plan, checkpoint=open_checkpoint(folder))


def score_streamed(
    model: Path,
    reference: Path,
    samples: torch.Tensor,
    progress: Progress = lambda done, total: None,
) -> tuple[Scores, Scores]:
    """Score samples int64 [samples, length] with a model and its reference, as `score` does.

    `progress(done, total)` counts samples through layers. Raises InputError E-EVAL-TOKENS for
    samples, E-EVAL-REFERENCE when logits of the reference are not finite, and what loading raises.
    """
    ours, theirs = open_streamed(model), open_streamed(reference)
    for each in (ours, theirs):
        check_samples(each.spec, samples.tolist())
    count, length = samples.shape
    total, done = count * (ours.spec.layers + theirs.spec.layers + 1), 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(0, total)
    wanted, found = theirs.residual(samples, step), ours.residual(samples, step)
    ours_head, theirs_head = (open_head(m.checkpoint, m.spec, m.plan) for m in (ours, theirs))
    scores, reference_scores = _empty(), _empty()
    piece = max(1, MOST_LOGITS_BYTES // (4 * ours.spec.vocab_size))
    for number, sample in enumerate(samples.tolist()):
        for start in range(0, length - 1, piece):
            rows = slice(start, min(start + piece, length - 1))
            following = sample[start + 1 : rows.stop + 1]
            logits = theirs_head.run(wanted[number, rows])
            _add(reference_scores, logits, following)
            if not all(reference_scores.finite):
                raise InputError(
                    "E-EVAL-REFERENCE",
                    f"{reference}: NaN or infinity in the logits of sample {number}; nothing can "
                    "be compared with them",
                )
            _add(scores, ours_head.run(found[number, rows]), following, logits.numpy())
        step()
    return scores, reference_scores


def _empty() -> Scores:
    """Scores of nothing yet."""
    return Scores(log_probabilities=[], tokens=[], finite=[], divergences=[])


def _add(
    scores: Scores,
    logits: torch.Tensor,
    following: list[int],
    reference: np.ndarray | None = None,
) -> None:
    compared = None if reference is None else reference.__getitem__
    rows = judge_rows(logits.numpy(), ops.greatest(logits), following, compared)
    if reference is None:
        del rows["divergences"]
    for name, values in rows.items():
        getattr(scores, name).extend(values)
