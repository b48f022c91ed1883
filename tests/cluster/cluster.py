"""A Ray cluster on namespace hosts, brought up and down as a user would: `ray up` from a desk."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import yaml

from isobit.launch.cluster.files import FOLDER

from .hosts import HOME, ClusterError, Host, Network

ADDRESSES = {"head": 1, "worker1": 2, "worker2": 3, "desk": 100}
WORKERS = ("worker1", "worker2")
MODEL = "examples/stdlib-qwen2-int4"
PORT = 6379
SSH = ("-i", f"{HOME}/.ssh/id_ed25519", "-o", "StrictHostKeyChecking=no")
SMALL = "--num-cpus=1 --object-store-memory=80000000"
UP_TIMEOUT_S = 150
JOIN_TIMEOUT_S = 90
END_TIMEOUT_S = 20

ALIVE = """
import logging, sys
import ray
ray.init(sys.argv[1], logging_level=logging.ERROR)
print(sum(node["Alive"] for node in ray.nodes()))
"""


class Cluster:
    """Three hosts with one CPU each and a desk that nothing is placed on."""

    def __init__(self, scratch: Path, logs: Path) -> None:
        self.logs = logs
        self.network = Network(scratch, logs, ADDRESSES)
        for name in ADDRESSES:
            self.network.start(name)

    def __getitem__(self, name: str) -> Host:
        return self.network.hosts[name]

    @property
    def address(self) -> str:
        return f"{self['head'].address}:{PORT}"

    def up(self) -> None:
        """`ray up`, and wait until every host has joined."""
        desk = self["desk"]
        desk.write(f"{HOME}/.ray/auth_token", secrets.token_hex(32))
        desk.write(f"{HOME}/cluster.yaml", yaml.safe_dump(self._ray_file(), sort_keys=False))
        self._ray("up", "--no-config-cache", timeout_s=UP_TIMEOUT_S)
        self.wait_for_nodes(len(WORKERS) + 1)

    def wait_for_nodes(self, count: int) -> None:
        """Wait until `count` hosts are alive; raises ClusterError with what Ray says.

        `ray status` will not do: it lists hosts that are still being set up as well.
        """
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while True:
            asked = self["head"].run(
                "env", "RAY_AUTH_MODE=token", "python", "-c", ALIVE, self.address
            )
            if asked.stdout.strip() == str(count):
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"{count} hosts did not join\n{asked}")
            time.sleep(1)

    def down(self) -> str:
        """`ray down`, and what it leaves to the user; no process may be left on any host."""
        self._ray("down", timeout_s=UP_TIMEOUT_S)
        # With this provider `ray down` stops the head alone.
        for name in WORKERS:
            if self[name].alive:
                self["desk"].run(
                    "ssh", *SSH, self[name].address, "isobit-venv/bin/ray stop"
                ).check()
        deadline = time.monotonic() + END_TIMEOUT_S
        while left := [
            f"{h.name}: {p}" for h in self.network.hosts.values() if h.alive for p in h.processes()
        ]:
            if time.monotonic() > deadline:
                raise ClusterError("`ray down` left behind:\n  " + "\n  ".join(left))
            time.sleep(0.5)
        return "no process is left on any host"

    def keep_logs(self) -> None:
        """Copy Ray's logs of every host into the log folder."""
        for host in self.network.hosts.values():
            if host.alive:
                host.run(
                    "bash", "-c", f"cp -rL /tmp/ray/session_latest/logs {self.logs}/{host.name}"
                )

    def _ray(self, verb: str, *options: str, timeout_s: float) -> None:
        self["desk"].run(
            "env", "RAY_UP_enable_autoscaler_v2=0", "RAY_AUTH_MODE=token",
            "ray", verb, f"{HOME}/cluster.yaml", "--yes", *options,
            timeout_s=timeout_s,
        ).check()  # fmt: skip

    def _ray_file(self) -> dict[str, Any]:
        """The shipped file, edited as a user would: addresses, login, one core a host.

        Nothing is installed: hosts find the environment that runs the tests at its usual place.
        """
        config = yaml.safe_load((FOLDER / "two-boxes.yaml").read_text())
        shipped_head = config["provider"]["head_ip"]
        config["provider"]["head_ip"] = self["head"].address
        config["provider"]["worker_ips"] = [self[name].address for name in WORKERS]
        config["min_workers"] = config["max_workers"] = len(WORKERS)
        config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{HOME}/.ssh/id_ed25519"}
        config["setup_commands"] = [c for c in config["setup_commands"] if "/pip" not in c]
        del config["file_mounts"]["~/isobit-wheel"]
        for role in ("head", "worker"):
            config[f"{role}_start_ray_commands"] = [
                command.replace(shipped_head, self["head"].address).replace(
                    "ray start ", f"ray start {SMALL} "
                )
                for command in config[f"{role}_start_ray_commands"]
            ]
        return config
