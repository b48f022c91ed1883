"""Running a model, and before it its reference, over the same samples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..kernels.errors import InputError
from ..runtime.config import EngineSettings, SamplingSettings, read_run_spec
from ..runtime.engine import Engine
from ..runtime.launcher import Launcher
from ..runtime.logits_file import LogitsFile
from ..runtime.score_samples import Exchange, Scores, positions_of, score
from ..runtime.stability import first_repetition
from ..shard.spec import ModelSpec

MOST_PROMPTS = 4
PROMPT_TOKENS = 32
NEW_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every model is run on. `choices` are scored beside the samples, without a comparison.

    `stress_tokens` greedy tokens follow the first prompt; 0 leaves them out.
    """

    samples: list[list[int]]
    choices: list[list[int]]
    stress_tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What one model made of the work. `greedy` goes on from each prompt.

    `stress` is its long text, which ends early with `stress_error` when a logit is not finite.
    """

    scores: Scores
    greedy: list[list[int]]
    choices: Scores | None
    stress: list[int]
    stress_error: str | None


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
    work: Work,
    new_launcher: Callable[[], Launcher],
    show: Callable[[str, int], None],
) -> tuple[ModelRun, ModelRun | None]:
    """Run the reference, then the model; `show` gets what runs and how many rows were scored.

    The reference's logits lie in a private temporary folder meanwhile. Raises InputError
    E-EVAL-DISK, E-EVAL-HOST when rank 0 cannot see that folder, E-EVAL-REFERENCE when logits of
    the reference are not finite, and what Engine raises.
    """
    if reference is None:
        return _run(model, "the model", settings, work, None, new_launcher, show), None
    with tempfile.TemporaryDirectory(prefix="isobit-evaluate-") as folder:
        path = Path(folder) / "reference.logits"
        vocabulary = read_run_spec(reference, settings.load).vocab_size
        LogitsFile(path=path, vocabulary=vocabulary).reserve(positions_of(work.samples))
        writing, reading = Exchange(path=path, mode="write"), Exchange(path=path, mode="read")
        theirs = _run(reference, "the reference", settings, work, writing, new_launcher, show)
        bad = theirs.scores.finite.count(False)
        if bad:
            raise InputError(
                "E-EVAL-REFERENCE",
                f"{reference}: NaN or infinity in the logits of {bad} of "
                f"{len(theirs.scores.finite)} positions; nothing can be compared with them",
            )
        ours = _run(model, "the model", settings, work, reading, new_launcher, show)
    return ours, theirs


def _run(
    model: Path,
    name: str,
    settings: EngineSettings,
    work: Work,
    exchange: Exchange | None,
    new_launcher: Callable[[], Launcher],
    show: Callable[[str, int], None],
) -> ModelRun:
    show(f"loading {name}", 0)
    with Engine(model, settings, new_launcher()) as engine:
        greedy: list[list[int]] = []
        if exchange is not None:
            _check_host(engine)
        scores = score(engine, work.samples, exchange, lambda rows: show(f"scoring {name}", rows))
        prompts = greedy_prompts(work.samples, engine.spec.max_positions) if exchange else []
        if prompts:
            show(f"greedy text of {name}", 0)
            sampling = SamplingSettings(max_tokens=NEW_TOKENS, ignore_eos=True)
            batch = engine.generate(prompts, [sampling] * len(prompts))
            greedy = [completion.tokens for completion in batch.completions]
        choices = None
        if work.choices:
            show(f"choices of {name}", 0)
            choices = score(engine, work.choices)
        stress, error = _stress(engine, work, lambda: show(f"long text of {name}", 0))
    return ModelRun(
        scores=scores, greedy=greedy, choices=choices, stress=stress, stress_error=error
    )


def _stress(engine: Engine, work: Work, show: Callable[[], None]) -> tuple[list[int], str | None]:
    if not work.stress_tokens:
        return [], None
    show()
    prompt = work.samples[0][:PROMPT_TOKENS]
    sampling = SamplingSettings(max_tokens=work.stress_tokens, ignore_eos=True)
    (completion,) = engine.generate([prompt], [sampling]).completions
    return completion.tokens, completion.error


def _check_host(engine: Engine) -> None:
    here, there = os.uname().nodename, engine.ranks[0]["node"]
    if here != there:
        raise InputError(
            "E-EVAL-HOST",
            f"rank 0 runs on {there}, this command on {here}: a reference needs both on one host, "
            "since its logits go through a file. Run the command where Ray placed rank 0, or leave "
            "out --reference",
        )


def stress_failures(run: ModelRun) -> list[str]:
    """What no long text may show: logits that are not finite, token 0 over and over."""
    failures = [] if run.stress_error is None else [f"long text: {run.stress_error}"]
    found = first_repetition(run.stress)
    if found is not None and found.zeros:
        failures.append(f"long text: token 0 over and over from token {found.index} on")
    return failures
