"""Ranks end with their driver, warn through it, and nothing listens where it need not."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from isobit.kernels.errors import EnvironmentFault
from isobit.launch.ray.session import ray_session
from isobit.runtime.config import EngineSettings
from isobit.runtime.engine import Engine
from isobit.runtime.launcher import LocalLauncher
from isobit.runtime.rendezvous import Rendezvous
from isobit.shard.plan import PlanSettings

from ..support import ROOT

ORPHAN = """
import json, os, subprocess, sys
process = subprocess.Popen(
    [sys.executable, "-m", "isobit.runtime.rank_process", str(os.getpid())], stdin=subprocess.PIPE
)
process.stdin.write(json.dumps({ticket!r}).encode() + b"\\n")
process.stdin.flush()
print(process.pid, flush=True)
os._exit(0)
"""


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_rank_does_not_outlive_a_driver_that_dies_at_once(tmp_path):
    ticket = {"endpoint": f"ipc://{tmp_path}/x", "rank": 0, "degree": 1, "secret": "s"}
    driver = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(ticket=ticket)],
        capture_output=True,
        text=True,
        check=True,
    )
    pid, deadline = int(driver.stdout), time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


def test_a_warning_of_ranks_is_seen_once(caplog):
    """Every rank meets a stored zero point of 15; the driver says so once."""
    case = ROOT / "tests" / "golden" / "gptq-v1-asymmetric-nibbles"
    settings = EngineSettings(plan=PlanSettings(degree=2))
    with caplog.at_level(logging.WARNING), Engine(case, settings, LocalLauncher()):
        pass
    lines = [r.getMessage() for r in caplog.records if "layers.0.mlp.down_proj" in r.getMessage()]
    assert len(lines) == 1
    assert "means 0 here, as in AutoGPTQ" in lines[0]


def test_the_store_across_hosts_listens_on_one_address_only(tmp_path):
    rendezvous = Rendezvous(tmp_path, "127.0.0.1")
    port = int(rendezvous.address.rpartition(":")[2])
    sockets = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in sockets for line in table.splitlines()]
    listening = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_a_ray_that_is_not_there_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(EnvironmentFault) as error, ray_session(f"127.0.0.1:{port}", 1):
        pass
    assert error.value.code == "E-RAY-CONNECT"
    assert time.monotonic() - started < 10
