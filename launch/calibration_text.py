"""Text files to samples of token ids for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.errors import InputError
from .text import Text

DEFAULT_SAMPLES, DEFAULT_LENGTH = 128, 512
HELD_OUT = 8


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """Pieces of a text, int64 [pieces, length]: those to calibrate on, and all others."""

    samples: torch.Tensor
    held_out: torch.Tensor


def calibration_text(
    model: Path, files: Sequence[Path], samples: int | None, length: int
) -> CalibrationText:
    """Cut the files' text into whole pieces of `length` and take samples, spread evenly over it.

    `samples` None takes up to DEFAULT_SAMPLES, and leaves an eighth of a short text for evaluation.
    Raises InputError E-CALIB-TEXT for files that cannot be read or hold too little, E-CALIB-LENGTH,
    E-TOKENIZER.
    """
    if length < 1 or (samples is not None and samples < 1):
        raise InputError(
            "E-CALIB-LENGTH", f"--samples {samples}, --length {length}: expected 1 or more of each"
        )
    texts = [_read(file) for file in files]
    tokenizer = Text(model, "Calibration text needs one: put the model's tokenizer.json there")
    ids = [token for text in texts for token in tokenizer.encode(text)]
    pieces = len(ids) // length
    wanted = usual_samples(pieces) if samples is None else samples
    if not wanted or wanted > pieces:
        raise InputError(
            "E-CALIB-TEXT",
            f"{', '.join(map(str, files))}: {len(ids)} tokens make {pieces} samples of {length}, "
            f"and {wanted or 'at least 1'} are wanted. Give more --text, or a smaller "
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


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("E-CALIB-TEXT", f"{file}: cannot be read as text ({error})") from error
    if not text.strip():
        raise InputError("E-CALIB-TEXT", f"{file}: empty")
    return text
