"""Text files as samples of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isobit.errors import InputError

from ..tokenizer.tokenizer import Tokenizer

SHORTEST = 2


def cut_samples(
    text: Tokenizer, files: Sequence[Path], texts: Sequence[str], length: int, most: int
) -> list[list[int]]:
    """At most `most` samples of `length` token ids, in the order of the files.

    The end of a file is a shorter sample, or left out when it has one token. Raises InputError
    E-EVAL-TEXT naming the files that give no sample at all.
    """
    samples: list[list[int]] = []
    wrong = []
    for file, content in zip(files, texts, strict=True):
        ids = text.encode(content)
        if len(ids) < SHORTEST:
            wrong.append(f"{file}: {len(ids)} tokens; at least {SHORTEST} are needed to score one")
        pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
        samples += [piece for piece in pieces if len(piece) >= SHORTEST]
    if wrong:
        raise InputError("E-EVAL-TEXT", "\n".join(wrong))
    return samples[:most]
