"""One process of `isobit bench collectives`: FOLDER RANK DEGREE; rank 0 prints JSON."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import torch

from .. import rendezvous
from .measure import MOST_SECONDS, even_plan, measure_as_rank


def main() -> None:
    # Whatever this process waits for, it does not outlive its driver for long.
    signal.alarm(MOST_SECONDS)
    torch.set_num_threads(1)
    folder, rank, degree = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rendezvous.join(f"file://{folder / 'rendezvous'}", rank, degree)
    rows = measure_as_rank(even_plan(degree), rank)
    if rank == 0:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
