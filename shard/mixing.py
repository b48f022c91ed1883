"""A cheap mixing function for fingerprints and reproducible random numbers by index."""

from __future__ import annotations

import numpy as np


def mix(x: np.ndarray) -> np.ndarray:
    """Mix uint64 numbers so that each bit depends on every bit.

    The finalizer of splitmix64 (Steele, Lea and Flood, 2014, Fast Splittable Pseudorandom Number
    Generators).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
