"""Running a model, and before it its reference, over the same samples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..kernels.errors import InputError
from ..runtime.config import EngineSettings, SamplingSettings
from ..runtime.engine import Engine
from ..runtime.launcher import Launcher
from ..runtime.logits_file import LogitsFile
from ..runtime.score_samples import Exchange, Scores, positions_of, score
from ..shard.spec import ModelSpec

MOST_PROMPTS = 4
PROMPT_TOKENS = 32
NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What one model made of the samples. `greedy` goes on from each prompt."""

    scores: Scores
    greedy: list[list[int]]


def check_vocabularies(model: ModelSpec, reference: ModelSpec) -> None:
    """Raise InputError E-EVAL-VOCAB when two models have no distribution over the same tokens."""
    if model.vocab_size != reference.vocab_size:
        raise InputError(
            "E-EVAL-VOCAB",
            f"the model has {model.vocab_size} tokens, the reference {reference.vocab_size}: their "
            "distributions cannot be compared. Take the model that this one was made from",
        )


def greedy_prompts(samples: Sequence[list[int]], most_positions: int) -> list[list[int]]:
    """The beginnings of the first samples, with room for new tokens behind them."""
    room = min(PROMPT_TOKENS, most_positions - NEW_TOKENS)
    return [sample[:room] for sample in samples[:MOST_PROMPTS]] if room > 0 else []


def run_models(
    model: Path,
    reference: Path | None,
    settings: EngineSettings,
    samples: Sequence[list[int]],
    new_launcher: Callable[[], Launcher],
    show: Callable[[str, int], None],
) -> tuple[ModelRun, ModelRun | None]:
    """Run the reference, then the model; `show` gets what runs and how many rows were scored.

    The reference's logits lie in a private temporary folder meanwhile. Raises InputError
    E-EVAL-DISK, E-EVAL-HOST when rank 0 cannot see that folder, E-EVAL-REFERENCE when logits of
    the reference are not finite, and what Engine raises.
    """
    if reference is None:
        return _run(model, "the model", settings, samples, None, new_launcher, show), None
    with tempfile.TemporaryDirectory(prefix="isobit-evaluate-") as folder:
        path = Path(folder) / "reference.logits"
        writing, reading = Exchange(path=path, mode="write"), Exchange(path=path, mode="read")
        theirs = _run(reference, "the reference", settings, samples, writing, new_launcher, show)
        bad = theirs.scores.finite.count(False)
        if bad:
            raise InputError(
                "E-EVAL-REFERENCE",
                f"{reference}: NaN or infinity in the logits of {bad} of "
                f"{len(theirs.scores.finite)} positions; nothing can be compared with them",
            )
        ours = _run(model, "the model", settings, samples, reading, new_launcher, show)
    return ours, theirs


def _run(
    model: Path,
    name: str,
    settings: EngineSettings,
    samples: Sequence[list[int]],
    exchange: Exchange | None,
    new_launcher: Callable[[], Launcher],
    show: Callable[[str, int], None],
) -> ModelRun:
    show(f"loading {name}", 0)
    with Engine(model, settings, new_launcher()) as engine:
        greedy: list[list[int]] = []
        if exchange is not None:
            _check_host(engine)
            if exchange.mode == "write":
                file = LogitsFile(path=exchange.path, vocabulary=engine.spec.vocab_size)
                file.reserve(positions_of(samples))
        scores = score(engine, samples, exchange, lambda rows: show(f"scoring {name}", rows))
        prompts = greedy_prompts(samples, engine.spec.max_positions) if exchange else []
        if prompts:
            show(f"greedy text of {name}", 0)
            sampling = SamplingSettings(max_tokens=NEW_TOKENS, ignore_eos=True)
            batch = engine.generate(prompts, [sampling] * len(prompts))
            greedy = [completion.tokens for completion in batch.completions]
    return ModelRun(scores=scores, greedy=greedy)


def _check_host(engine: Engine) -> None:
    here, there = os.uname().nodename, engine.ranks[0]["node"]
    if here != there:
        raise InputError(
            "E-EVAL-HOST",
            f"rank 0 runs on {there}, this command on {here}: a reference needs both on one host, "
            "since its logits go through a file. Run the command where Ray placed rank 0, or leave "
            "out --reference",
        )
