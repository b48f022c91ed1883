"""Is a checkpoint healthy? Headers, then every tensor once, and every problem in one list."""

from __future__ import annotations

from isobit.findings import Finding

from .run import inspect_folder
from .summary import Report

__all__ = ["Finding", "Report", "inspect_folder"]
