"""Nodes of a Ray cluster on this machine: raylets, each at an address of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isobit.launch.cluster.ray.auth import ray_environment

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

HEAD, WORKER = "127.0.1.1", "127.0.1.2"
TOKEN = "a token of this test " * 2


@contextmanager
def ray_nodes(nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[Cluster]:
    """A node at each address, the head's first, with its options of `add_node`. Ray wants TOKEN."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    variables = {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with ray_environment(variables):
        made = Cluster()
        try:
            for address, options in nodes.items():
                made.add_node(node_ip_address=address, **options)
            yield made
        finally:
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
