"""A Ray cluster on the namespace hosts, brought up and down as a user would: `ray up` from a desk."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import yaml

from .hosts import HOME, ROOT, ClusterError, Host, Network, Outcome, finish

ADDRESSES = {"head": 1, "worker1": 2, "worker2": 3, "desk": 100}
WORKERS = ("worker1", "worker2")
MODEL = "examples/stdlib-qwen2-int4"
PORT = 6379
UP_TIMEOUT_S = 150
NODES_TIMEOUT_S = 90


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

    def up(self) -> Outcome:
        """`ray up`, and wait until every host has joined."""
        desk = self["desk"]
        token = secrets.token_hex(32)
        desk.write(f"{HOME}/.ray/auth_token", token)
        desk.write(f"{HOME}/cluster.yaml", yaml.safe_dump(self.ray_file()))
        done = desk.run(
            "env", "RAY_UP_enable_autoscaler_v2=0", "RAY_AUTH_MODE=token",
            "ray", "up", f"{HOME}/cluster.yaml", "--yes", "--no-config-cache",
            timeout_s=UP_TIMEOUT_S,
        )  # fmt: skip
        return done

    def ray_file(self) -> dict[str, Any]:
        """The shipped file with the addresses and the login of these hosts."""
        join = "RAY_AUTH_MODE=token OMP_NUM_THREADS=1 ray start --num-cpus=1 --object-store-memory=80000000"
        return {
            "cluster_name": "isobit",
            "provider": {
                "type": "local",
                "head_ip": self["head"].address,
                "worker_ips": [self[name].address for name in WORKERS],
            },
            "auth": {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"},
            "min_workers": len(WORKERS),
            "max_workers": len(WORKERS),
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 60,
            "file_mounts": {"~/.ray/auth_token": "~/.ray/auth_token"},
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [
                "ray stop",
                f"{join} --head --port={PORT} --node-ip-address={self['head'].address} "
                "--include-dashboard=false --autoscaling-config=~/ray_bootstrap_config.yaml",
            ],
            "worker_start_ray_commands": [
                "ray stop",
                f"{join} --address=$RAY_HEAD_IP:{PORT} "
                "--node-ip-address=$(hostname -I | cut -d' ' -f1)",
            ],
        }
