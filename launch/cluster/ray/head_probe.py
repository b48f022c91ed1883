"""Asking a cluster's head whether it is one, and whether it takes our token, before joining it.

`ray.init` would ask for two minutes and fill the terminal meanwhile; so would Ray's client here,
which is why it runs in a process of its own:
`python -m isobit.launch.cluster.ray.head_probe ADDRESS`.
"""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from typing import Any

from isobit.errors import EnvironmentFault

from .auth import TOKEN, TOKEN_FILE, token_source
from .reach import silence

ANSWER_S = 12.0
REFUSED = "AuthenticationError"


def check_head(address: str) -> None:
    """Ask the head at `address` (host:port) who it is.

    Raises EnvironmentFault E-RAY-CONNECT when nobody answers, it is no Ray, or this host is not
    in its cluster, E-RAY-AUTH when it refuses the token, E-RAY-VERSION when it runs another Ray
    or Python.
    """
    host, _, port = address.rpartition(":")
    if (reason := silence((host, int(port)))) is not None:
        raise EnvironmentFault(
            "E-RAY-CONNECT",
            f"no head of a Ray cluster answers at {address}: {reason}. Is `ray start --head` "
            "running there, and does a firewall let this host through?",
        )
    try:
        probe = subprocess.run(
            [sys.executable, "-m", __name__, address],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
        lines = probe.stdout.splitlines()
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {"error": probe.stderr[-500:]}
    except subprocess.TimeoutExpired:
        answer = {"error": f"no answer within {ANSWER_S:.0f} s"}
    if answer.get("error_class") == REFUSED:
        raise EnvironmentFault("E-RAY-AUTH", _refused(address))
    if "error" in answer:
        raise EnvironmentFault(
            "E-RAY-CONNECT",
            f"something listens at {address}, but it does not answer as the head of a Ray cluster: "
            f"{answer['error']}. Has another program taken the port? `ss -ltnp` there shows which",
        )
    theirs = answer["cluster"]
    differing = [
        f"  {name}: the cluster {theirs.get(name)}, this host {value}"
        for name, value in _ours().items()
        if theirs.get(name) != value
    ]
    if differing:
        raise EnvironmentFault(
            "E-RAY-VERSION",
            f"Ray cluster at {address} and this host {socket.gethostname()} run different "
            "software. Install the same on both\n" + "\n".join(differing),
        )
    if not answer["joined"]:
        raise EnvironmentFault(
            "E-RAY-CONNECT",
            f"this host {socket.gethostname()} is not part of the Ray cluster at {address}: join "
            f"it with `ray start --address={address}`, or run on one of its hosts",
        )


def _refused(address: str) -> str:
    source = token_source()
    if source is None:
        return (
            f"Ray cluster at {address} asks for a token, and there is none here: set {TOKEN}, or "
            f"{TOKEN_FILE} to its file (`ray get-auth-token` on the head prints it)"
        )
    return (
        f"Ray cluster at {address} refuses the token of {source}. Take the cluster's own: "
        f"`ray get-auth-token` on its head prints it, for {TOKEN} or the file of {TOKEN_FILE}"
    )


def _ours() -> dict[str, str]:
    from importlib.metadata import version

    return {"ray": version("ray"), "python": platform.python_version()}


def _is_here(address: str) -> bool:
    """Whether an address belongs to this host: nobody can listen at another's."""
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Print one JSON object: "cluster" with its versions and "joined", whether a node of it runs on
    this host; or "error" and "error_class".
    """
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.exceptions import RayError

    try:
        head = GcsClient(address=sys.argv[1])
        told = get_cluster_metadata(head) or {}
        addresses = {node.node_manager_address for node in head.get_all_node_info().values()}
        answer = {
            "cluster": {"ray": told.get("ray_version"), "python": told.get("python_version")},
            "joined": any(map(_is_here, addresses)),
        }
    except RayError as error:
        text = str(error).partition(":")[2] or str(error)
        answer = {"error_class": type(error).__name__, "error": text.strip().partition(".")[0]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
