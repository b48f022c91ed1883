"""A tensor-parallel runtime for quantized language models, with the same bits at every size."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isobit.launch.api.functions import inspect, plan, verify  # pyright: ignore[reportMissingImports]
    from isobit.launch.api.llm import LLM  # pyright: ignore[reportMissingImports]
    from isobit.launch.api.sampling_params import SamplingParams  # pyright: ignore[reportMissingImports]

__version__ = version("isobit")

__all__ = ["LLM", "SamplingParams", "__version__", "inspect", "plan", "verify"]

_HOMES = {
    "LLM": "llm",
    "SamplingParams": "sampling_params",
    "inspect": "functions",
    "plan": "functions",
    "verify": "functions",
}


def __getattr__(name: str) -> Any:
    """What is asked for is imported then: torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"isobit.launch.api.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
