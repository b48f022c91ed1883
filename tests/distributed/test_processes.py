"""Ranks end with their driver, warn through it, and nothing listens where it need not."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isobit.errors import EnvironmentFault
from isobit.runtime.engine.engine import Engine
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings
from isobit.runtime.transport.address import Address
from isobit.runtime.transport.driver import DriverLink
from isobit.runtime.transport.rendezvous import Rendezvous
from isobit.shard.plan.plan import PlanSettings

from ..support import ROOT

ORPHAN = """
import os, time
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.transport.ticket import RankTicket
launcher = LocalLauncher()
launcher.launch([RankTicket(**{ticket!r})])
while not launcher.pids():
    time.sleep(0.01)
print(launcher.pids()[0], flush=True)
os._exit(0)
"""


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.timeout(120)
def test_a_rank_does_not_outlive_a_driver_that_dies_at_once():
    """Although somebody still listens where it connects."""
    link = DriverLink(1, Address())
    try:
        driver = subprocess.run(
            [sys.executable, "-c", ORPHAN.format(ticket=vars(link.ticket(0)))],
            capture_output=True,
            text=True,
            check=True,
        )
        while alive(int(driver.stdout)):
            time.sleep(0.1)
    finally:
        link.close()


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


@pytest.mark.parametrize("listener", [Rendezvous, DriverLink], ids=lambda each: each.__name__)
def test_an_address_of_another_host_cannot_be_listened_at(listener, tmp_path):
    """192.0.2.0/24 belongs to documentation, never to a host."""
    with pytest.raises(EnvironmentFault, match=r"at 192\.0\.2\.7: ") as caught:
        if listener is Rendezvous:
            Rendezvous(tmp_path, "192.0.2.7")
        else:
            DriverLink(1, Address(host="192.0.2.7"))
    assert caught.value.code == "E-DRIVER-LISTEN"
