"""One process of `isobit bench collectives`: FOLDER RANK DEGREE SIZES; rank 0 prints JSON."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist

from isobit.errors import EnvironmentFault

from ..transport import rendezvous
from .measure import MOST_SECONDS, even_plan, measure_as_rank


def main() -> None:
    # Whatever this process waits for, it does not outlive its driver for long.
    signal.alarm(MOST_SECONDS)
    # The terminal sends Ctrl-C to the whole process group; only the driver acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    folder, rank, degree = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sizes = [int(size) for size in sys.argv[4].split(",")]
    rendezvous.join(f"file://{folder}/rendezvous", rank, degree)
    answer: dict[str, Any]
    try:
        answer = {"rows": measure_as_rank(even_plan(degree), rank, sizes)}
    except EnvironmentFault as fault:
        answer = {"error": {"code": fault.code, "message": fault.message}}
    finally:
        # gloo's threads must not be left to the end of the interpreter.
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
