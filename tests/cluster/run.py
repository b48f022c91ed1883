"""The run inside its namespaces: each stage with its seconds, and what went wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .cluster import Cluster
from .hosts import ClusterError, Host
from .stages import Stages

# Hidden below a file system of this mount namespace, so that no file can be left on the machine.
SCRATCH = Path("/mnt")


class Progress:
    """Runs stages one after the other and keeps count of those that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def stage(self, name: str, act: Callable[[], str], needed: bool = False) -> None:
        """Run a stage; raises its ClusterError when nothing can follow without it."""
        begin = time.monotonic()
        print(f"{name:<44}", end=" ", flush=True)
        try:
            seen = act()
        except ClusterError as error:
            print(
                f"{time.monotonic() - begin:6.1f} s  FAILED\n  " + str(error).replace("\n", "\n  ")
            )
            self.failed.append(name)
            if needed:
                raise
        else:
            print(f"{time.monotonic() - begin:6.1f} s  {seen}")


def main() -> int:
    logs = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(SCRATCH)], check=True)
    progress = Progress()
    cluster = Cluster(SCRATCH, logs)
    try:
        _all_stages(cluster, progress)
    except ClusterError:
        print("  nothing can follow")
    finally:
        if progress.failed:
            cluster.keep_logs()
        cluster.network.close()
    return 1 if progress.failed else 0


def _all_stages(cluster: Cluster, progress: Progress) -> None:
    stages = Stages(cluster)

    def cut(host: Host) -> None:
        host.cable(plugged=False)

    def plug_in_and_run() -> str:
        cluster["worker2"].cable(plugged=True)
        return stages.across_hosts(3)

    progress.stage("one host alone", stages.one_host, needed=True)
    progress.stage("ray up", stages.up, needed=True)
    progress.stage("generate over 2 hosts", lambda: stages.across_hosts(2))
    progress.stage("generate over 3 hosts", lambda: stages.across_hosts(3))
    progress.stage("verify over 3 hosts", stages.verify_across_hosts)
    progress.stage("cable of worker2 cut in an answer", lambda: stages.lose("worker2", cut, 3))
    progress.stage("cable back, generate over 3 hosts", plug_in_and_run)
    progress.stage("worker1 killed in an answer", lambda: stages.lose("worker1", Host.kill, 3))
    progress.stage("generate over the 2 hosts left", lambda: stages.across_hosts(2))
    progress.stage("ray down", stages.down)


if __name__ == "__main__":
    sys.exit(main())
