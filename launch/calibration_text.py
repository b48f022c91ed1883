"""Text files to samples of token ids for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..kernels.errors import InputError
from .text import Text

DEFAULT_SAMPLES, DEFAULT_LENGTH = 128, 512


def calibration_samples(
    model: Path, files: Sequence[Path], samples: int | None, length: int
) -> torch.Tensor:
    """Return int64 [samples, length]: whole pieces of the files' text, spread evenly over it.

    `samples` None takes up to DEFAULT_SAMPLES of what there is. Raises InputError E-CALIB-TEXT for
    files that cannot be read or hold too little, E-CALIB-LENGTH, E-TOKENIZER.
    """
    if length < 1 or (samples is not None and samples < 1):
        raise InputError(
            "E-CALIB-LENGTH", f"--samples {samples}, --length {length}: expected 1 or more of each"
        )
    texts = [_read(file) for file in files]
    tokenizer = Text(model, "Calibration text needs one: put the model's tokenizer.json there")
    ids = [token for text in texts for token in tokenizer.encode(text)]
    pieces = len(ids) // length
    wanted = min(pieces, DEFAULT_SAMPLES) if samples is None else samples
    if not wanted or wanted > pieces:
        raise InputError(
            "E-CALIB-TEXT",
            f"{', '.join(map(str, files))}: {len(ids)} tokens make {pieces} samples of {length}, "
            f"and {wanted or 'at least 1'} are wanted. Give more --text, or a smaller "
            + ("--samples" if pieces else "--length"),
        )
    picked = torch.arange(wanted) * pieces // wanted
    return torch.tensor(ids[: pieces * length]).view(pieces, length)[picked]


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("E-CALIB-TEXT", f"{file}: cannot be read as text ({error})") from error
    if not text.strip():
        raise InputError("E-CALIB-TEXT", f"{file}: empty")
    return text
