"""What the processes of all steps have imported before they fork. None of it may touch CUDA."""

from __future__ import annotations

from ...runtime import rank_process, worker
from . import child

PRELOADED = (child, rank_process, worker)
