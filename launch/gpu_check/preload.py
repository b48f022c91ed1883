"""What the processes of all steps have imported before they fork. None of it may touch CUDA."""

from __future__ import annotations

from ...runtime.worker import process, worker
from . import child

PRELOADED = (child, process, worker)
