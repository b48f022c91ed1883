"""Text files, or a dataset, to samples of token ids for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.errors import InputError

from ..tokenizer.tokenizer import Tokenizer
from .hub_dataset import HubDataset
from .text_files import read_texts

DEFAULT_SAMPLES, DEFAULT_LENGTH = 128, 512
HELD_OUT = 8
TEXT = "E-CALIB-TEXT"


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """Pieces of a text, int64 [pieces, length]: those to calibrate on, and all others."""

    samples: torch.Tensor
    held_out: torch.Tensor


def calibration_text(
    model: Path,
    files: Sequence[Path],
    samples: int | None,
    length: int,
    dataset: HubDataset | None = None,
) -> CalibrationText:
    """Cut the files' text into whole pieces of `length` and take samples, spread evenly over it.

    `samples` None takes up to DEFAULT_SAMPLES, and leaves an eighth of a short text for evaluation.
    A `dataset` takes the place of the files; its first rows are read, as many as are needed for
    both. Raises InputError E-CALIB-TEXT for text that cannot be read or holds too little,
    E-CALIB-LENGTH, E-TOKENIZER, and what HubDataset.texts raises.
    """
    if length < 1 or (samples is not None and samples < 1):
        raise InputError(
            "E-CALIB-LENGTH", f"--samples {samples}, --length {length}: expected 1 or more of each"
        )
    texts = [] if dataset is not None else read_texts(files, TEXT, "cannot be read as text")
    tokenizer = Tokenizer(model, "Calibration text needs one: put the model's tokenizer.json there")
    sought = DEFAULT_SAMPLES if samples is None else samples
    most = (sought * HELD_OUT // (HELD_OUT - 1) + 1) * length
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.encode(text)
    if dataset is not None:
        for text in dataset.texts():
            ids += tokenizer.encode(text)
            if len(ids) >= most:
                break
    pieces = len(ids) // length
    wanted = usual_samples(pieces) if samples is None else samples
    if not wanted or wanted > pieces:
        source = ", ".join(map(str, files)) if dataset is None else f"--dataset {dataset.id}"
        raise InputError(
            TEXT,
            f"{source}: {len(ids)} tokens make {pieces} samples of {length}, "
            f"and {wanted or 'at least 1'} are wanted. Give more text, or a smaller "
            + ("--samples" if pieces else "--length"),
        )
    cut = torch.tensor(ids[: pieces * length]).view(pieces, length)
    picked = torch.zeros(pieces, dtype=torch.bool)
    picked[torch.arange(wanted) * pieces // wanted] = True
    return CalibrationText(samples=cut[picked], held_out=cut[~picked])


def usual_samples(pieces: int) -> int:
    """How many of the pieces of a text are calibrated on unless told otherwise."""
    held_out = max(1, pieces // HELD_OUT) if pieces > 1 else 0
    return min(pieces - held_out, DEFAULT_SAMPLES)
