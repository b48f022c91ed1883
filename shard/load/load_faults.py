"""What makes a rank's weights unusable, gathered so that one error names all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from isobit.errors import DamagedError, InputError

MOST_LISTED = 20


@dataclass(kw_only=True)
class LoadFaults:
    """Names of tensors that are not finite, magnitudes that do not fit the dtype, other errors."""

    not_finite: list[str] = field(default_factory=list)
    too_large: dict[str, float] = field(default_factory=dict)
    problems: list[InputError] = field(default_factory=list)

    def add(self, other: LoadFaults) -> None:
        self.not_finite += other.not_finite
        self.too_large |= other.too_large
        self.problems += other.problems

    def raise_all(self, source: str, dtype: torch.dtype, trained_in: str) -> None:
        """Raise one InputError for all weights that cannot be used, if there are any."""
        if self.problems:
            code = self.problems[0].code
            same = [problem for problem in self.problems if problem.code == code]
            raise type(same[0])(code, "\n".join(problem.message for problem in same))
        if self.not_finite:
            raise DamagedError(
                "E-CKPT-NAN",
                f"{source}: NaN or infinity in {len(self.not_finite)} tensors:\n  "
                + "\n  ".join(self.not_finite[:MOST_LISTED])
                + "\nThe file is damaged, or quantization met a group of zeros. Download it again "
                "or quantize it again",
            )
        if self.too_large:
            most = torch.finfo(dtype).max
            lines = [f"{name}: absmax {a:.3g} > {most:.5g}" for name, a in self.too_large.items()]
            raise InputError(
                "E-NUM-OVERFLOW",
                f"{source}: values of {len(lines)} tensors do not fit {dtype}:\n  "
                + "\n  ".join(lines[:MOST_LISTED])
                + f"\nThe model was trained in {trained_in}; run with --dtype bfloat16 or float32",
            )
