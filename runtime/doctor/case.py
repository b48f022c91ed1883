"""What the doctor examines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings.engine import EngineSettings, SamplingSettings


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is examined. `engine.plan.degree` is the degree; `prompts` are token ids.

    `quick` leaves out what takes long. `reference` is the model before quantization.
    """

    model: Path
    engine: EngineSettings
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int = 4
    quick: bool = False
    reference: Path | None = None

    @property
    def degree(self) -> int:
        return self.engine.plan.degree

    @property
    def sampling(self) -> SamplingSettings:
        return SamplingSettings(max_tokens=self.max_tokens, ignore_eos=True)

    def report(self) -> dict[str, Any]:
        """The case in JSON, enough to run it again."""
        return {
            "model": str(self.model.absolute()),
            "reference": None if self.reference is None else str(self.reference.absolute()),
            "tp": self.degree,
            "atoms": self.engine.plan.atoms,
            "layout": self.engine.plan.layout,
            "dtype": self.engine.dtype,
            "max_model_len": self.engine.max_model_len,
            "all_reduce": self.engine.all_reduce,
            "prompts": [list(prompt) for prompt in self.prompts],
            "max_tokens": self.max_tokens,
            "quick": self.quick,
        }
