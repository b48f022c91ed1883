"""Features of a weight, output or input: a range, or indices in any order."""

from __future__ import annotations

import torch

Features = slice | torch.Tensor
"""Output or input features of a weight: a range with both ends, or int64 indices."""


def bounds(features: Features) -> tuple[int, int]:
    """The smallest range (begin, end) that holds all features; (0, 0) when there are none.

    A rank's empty range may lie beyond the end of the weight, where padding is.
    """
    if isinstance(features, slice):
        return (features.start, features.stop) if features.start < features.stop else (0, 0)
    if not len(features):
        return 0, 0
    return int(features.min()), int(features.max()) + 1


def count(features: Features) -> int:
    """How many features there are."""
    return max(0, features.stop - features.start) if isinstance(features, slice) else len(features)


def places(features: Features, first: int) -> torch.Tensor:
    """Where each feature lies, int64, counted from the feature `first`."""
    if isinstance(features, slice):
        return torch.arange(count(features)) + (features.start - first)
    return features - first


def part(features: Features, begin: int, end: int) -> Features:
    """The features from the begin-th to the end-th."""
    if isinstance(features, slice):
        return slice(features.start + begin, features.start + end)
    return features[begin:end]
