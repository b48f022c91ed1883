"""Running groups of forked ranks and reading what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...support import ROOT


def run_groups(
    top: Path,
    jobs: dict[str, dict[str, Any]],
    module: str = "shared_ranks",
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[Any]]:
    """Run each job's ranks; returns, per job, the result of each rank (None: it left none)."""
    folders = {name: top / name for name in jobs}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(jobs[name]))
    command = [sys.executable, "-m", f"tests.distributed.collectives.{module}", *folders.values()]
    environment = {**os.environ, **(environment or {})}
    subprocess.run(command, cwd=ROOT, check=True, timeout=200, env=environment)
    return {
        name: [_result(folder / f"result-{rank}.json") for rank in range(jobs[name]["degree"])]
        for name, folder in folders.items()
    }


def _result(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
