"""The methods that need calibration, and their settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["gptq", "awq", "awq+gptq", "smoothquant"]
Search = Literal["awq", "smoothquant"]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """`damp_percent`, `desc_act` and `mse` are GPTQ's; see GptqSettings.

    "awq+gptq" folds AWQ's scales, then has GPTQ choose the codes, without AWQ's clipping.
    `desc_act` is with static groups, so that groups are runs of input features in every format:
    compressed-tensors 0.20 refuses g_idx.
    """

    method: Method
    damp_percent: float = 0.01
    desc_act: bool = False
    mse: float = 0.0

    @property
    def search(self) -> Search | None:
        """How scales are searched for that go through folds; None for no scales."""
        if self.method == "smoothquant":
            return "smoothquant"
        return None if self.method == "gptq" else "awq"

    @property
    def feedback(self) -> bool:
        """Whether GPTQ chooses the codes."""
        return self.method in ("gptq", "awq+gptq")

    def described(self) -> dict[str, Any]:
        """The settings that the method has, by name."""
        return dataclasses.asdict(self) if self.feedback else {"method": self.method}
