"""The text on which a quantized model is compared with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.errors import InputError

from ...runtime.evaluation.score_samples import check_samples
from ...shard.model.spec import read_spec
from ..tokenizer.tokenizer import Tokenizer
from .samples import SHORTEST
from .text_files import read_texts

BUILT_IN = Path(__file__).with_name("sample_text.txt")
"""Prose, dialogue, code and six languages, written for isobit."""

MOST_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """Samples int64 [samples, length], and where they come from in words."""

    samples: torch.Tensor
    source: str


def given_text(model: Path, files: Sequence[Path], length: int) -> EvaluationText:
    """Whole pieces of `length` tokens, spread evenly over files; all of a text that is shorter.

    Raises InputError E-EVAL-TEXT for files that are no text, E-EVAL-TOKENS for ids that the model
    does not have, E-TOKENIZER.
    """
    texts = read_texts(files, "E-EVAL-TEXT")
    tokenizer = Tokenizer(model, "Evaluating on text needs one; --no-evaluate leaves it out")
    ids = [token for text in texts for token in tokenizer.encode(text)]
    if len(ids) < SHORTEST:
        raise InputError(
            "E-EVAL-TEXT",
            f"{', '.join(map(str, files))}: {len(ids)} tokens; at least {SHORTEST} are needed",
        )
    spec = read_spec(model)
    length = min(length, len(ids), spec.max_positions)
    pieces = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    samples = spread(pieces)
    check_samples(spec, samples.tolist())
    return EvaluationText(samples=samples, source=", ".join(map(str, files)))


def built_in_text(model: Path, length: int) -> EvaluationText:
    """The text that comes with isobit, as `given_text` cuts it."""
    return EvaluationText(
        samples=given_text(model, [BUILT_IN], length).samples, source="isobit's own sample text"
    )


def spread(pieces: torch.Tensor) -> torch.Tensor:
    """At most MOST_SAMPLES rows of [pieces, length], spread evenly."""
    count = min(len(pieces), MOST_SAMPLES)
    return pieces[torch.arange(count) * len(pieces) // max(count, 1)]
