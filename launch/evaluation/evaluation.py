"""Running a model, and before it its reference, over the same samples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isobit.errors import InputError

from ...runtime.engine.engine import Engine
from ...runtime.evaluation.logits_file import LogitsFile
from ...runtime.evaluation.score_samples import Exchange, Scores, positions_of, score
from ...runtime.evaluation.stability import broken
from ...runtime.ranks.launcher import Launcher
from ...runtime.settings.engine import EngineSettings, SamplingSettings, read_run_spec
from ...shard.model.spec import ModelSpec
from ..tokenizer.tokenizer import Tokenizer
from .turns import Turn, hold

MOST_PROMPTS = 4
PROMPT_TOKENS = 32
NEW_TOKENS = 32
NOTHING = Scores(log_probabilities=[], tokens=[], finite=[], divergences=[])


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every model is run on. `choices` are scored beside the samples, without a comparison.

    `stress_tokens` greedy tokens follow `stress_prompt`; 0 leaves them out. `conversations` are
    held with `text`, each within `most_tokens`.
    """

    samples: list[list[int]]
    choices: list[list[int]]
    stress_prompt: list[int]
    stress_tokens: int
    conversations: list[list[str]]
    text: Tokenizer
    most_tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What one model made of the work. `greedy` goes on from each prompt.

    `stress` is its long text, which ends early with `stress_error` when a logit is not finite.
    `turns` are its answers; `followed` scores the transcripts of the reference's, None without one.
    """

    scores: Scores
    greedy: list[list[int]]
    choices: Scores | None
    stress: list[int]
    stress_error: str | None
    turns: list[Turn]
    followed: Scores | None


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
        return _run(model, "the model", settings, work, None, (), new_launcher, show), None
    with tempfile.TemporaryDirectory(prefix="isobit-evaluate-") as folder:
        path = Path(folder) / "reference.logits"
        vocabulary = read_run_spec(reference, settings.load).vocab_size
        if work.samples:
            LogitsFile(path=path, vocabulary=vocabulary).reserve(positions_of(work.samples))
        writing, reading = Exchange(path=path, mode="write"), Exchange(path=path, mode="read")
        theirs = _run(reference, "the reference", settings, work, writing, (), new_launcher, show)
        bad = theirs.scores.finite.count(False)
        if bad:
            raise InputError(
                "E-EVAL-REFERENCE",
                f"{reference}: NaN or infinity in the logits of {bad} of "
                f"{len(theirs.scores.finite)} positions; nothing can be compared with them",
            )
        turns = theirs.turns
        ours = _run(model, "the model", settings, work, reading, turns, new_launcher, show)
    return ours, theirs


def _run(
    model: Path,
    name: str,
    settings: EngineSettings,
    work: Work,
    exchange: Exchange | None,
    followed: Sequence[Turn],
    new_launcher: Callable[[], Launcher],
    show: Callable[[str, int], None],
) -> ModelRun:
    show(f"loading {name}", 0)
    with Engine(model, settings, new_launcher()) as engine:
        greedy: list[list[int]] = []
        if exchange is not None:
            check_host(engine)
        scores = NOTHING
        if work.samples:
            show(f"scoring {name}", 0)
            scores = score(
                engine, work.samples, exchange, lambda rows: show(f"scoring {name}", rows)
            )
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
        turns: list[Turn] = []
        for number, messages in enumerate(work.conversations):
            show(f"conversations of {name}", 0)
            turns += hold(engine, work.text, number, messages, work.most_tokens)
        follow = None
        if exchange is not None:
            transcripts = turns if exchange.mode == "write" else followed
            follow = _follow(engine, transcripts, exchange)
    return ModelRun(
        scores=scores,
        greedy=greedy,
        choices=choices,
        stress=stress,
        stress_error=error,
        turns=turns,
        followed=follow,
    )


def _follow(engine: Engine, turns: Sequence[Turn], exchange: Exchange) -> Scores | None:
    """Score transcripts of the reference's turns, whose logits go through a file of their own."""
    transcripts = [turn.transcript for turn in turns]
    if not transcripts:
        return None
    path = exchange.path.with_name("turns.logits")
    if exchange.mode == "write":
        file = LogitsFile(path=path, vocabulary=engine.spec.vocab_size)
        file.reserve(positions_of(transcripts))
    return score(engine, transcripts, replace(exchange, path=path))


def _stress(engine: Engine, work: Work, show: Callable[[], None]) -> tuple[list[int], str | None]:
    if not work.stress_tokens:
        return [], None
    show()
    sampling = SamplingSettings(max_tokens=work.stress_tokens, ignore_eos=True)
    (completion,) = engine.generate([work.stress_prompt], [sampling]).completions
    return completion.tokens, completion.error


def check_host(engine: Engine) -> None:
    """Raise InputError E-EVAL-HOST when rank 0 cannot see this host's files."""
    here, there = os.uname().nodename, engine.ranks[0]["node"]
    if here != there:
        raise InputError(
            "E-EVAL-HOST",
            f"rank 0 runs on {there}, this command on {here}: a reference needs both on one host, "
            "since its logits go through a file. Run the command where Ray placed rank 0, or leave "
            "out --reference",
        )


def text_failures(run: ModelRun) -> list[str]:
    """What is broken in the long text and in answers."""
    found = broken(run.stress, run.stress_error)
    failures = [] if found is None else [f"long text: {found}"]
    for each in run.turns:
        if (found := broken(each.answer, each.error)) is not None:
            failures.append(f"conversation {each.conversation}, turn {each.turn}: {found}")
    return failures
