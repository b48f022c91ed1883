"""Numbers that tell orders of additions apart and the one order that is right."""

from __future__ import annotations

import numpy as np


def wild(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 numbers over 24 powers of two, both signs: every order of additions rounds anew."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * 2.0 ** random.integers(-12, 12, shape)
    return values.astype(np.float32)


def numpy_tree(leaves: np.ndarray) -> np.ndarray:
    """((a0+a1)+(a2+a3))+((a4+a5)+(a6+a7)), written another way than the code."""
    level = list(leaves)
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    assert level[0].dtype == np.float32
    return level[0]
