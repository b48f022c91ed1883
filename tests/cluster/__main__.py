"""`python -m tests.cluster`: a Ray cluster of namespace hosts from `ray up` to `ray down`.

Exit status 0 when every stage went as it should, 1 when one did not, 77 when hosts cannot be made
on this machine. Nothing outlives the run but, after a failure, its logs in build/cluster-test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .hosts import MARK, ROOT
from .requirements import NAMESPACES, why_not

CANNOT_RUN = 77
LOGS = ROOT / "build" / "cluster-test"
TIMEOUT_S = 1200


def main() -> int:
    begin = time.monotonic()
    reason = why_not()
    if reason is not None:
        print(f"cannot run here: {reason}")
        return CANNOT_RUN
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    mark = f"{os.getpid()}-{time.time_ns()}"
    # Process 1 of the namespaces: when it ends, however it ends, all hosts end with it.
    with subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            *NAMESPACES,
            "--uts",
            sys.executable,
            "-u",
            "-m",
            "tests.cluster.run",
            str(LOGS),
        ],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
    ) as run:
        try:
            status = run.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print(f"no end within {TIMEOUT_S} s")
            status = 1
        finally:
            run.kill()
    left = _processes_marked(mark)
    if left:
        print("processes outlived the run:", *left, sep="\n  ")
        status = 1
    print(f"{'all as it should be' if status == 0 else 'FAILED'}, {time.monotonic() - begin:.0f} s")
    if status == 0:
        shutil.rmtree(LOGS)
    else:
        print(f"logs of all hosts: {LOGS}")
    return min(status, 1)


def _processes_marked(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended while we looked
    return found


if __name__ == "__main__":
    sys.exit(main())
