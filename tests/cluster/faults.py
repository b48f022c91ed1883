"""What goes wrong on clusters, done to these hosts: each is one clear error within 30 s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .cluster import MODEL, Cluster
from .hosts import ROOT, ClusterError, Host
from .stages import generate

TIMEOUT_S = 30
OTHER_PORT = 6390


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong while `isobit generate` is started."""

    name: str
    code: str
    words: Sequence[str]
    """All of these are in the message."""
    done: Callable[[Cluster], AbstractContextManager[None]]
    degree: int = 3
    host: str = "head"
    address: str | None = None
    environment: Sequence[str] = ()
    options: Sequence[str] = ()


@contextmanager
def nothing(_: Cluster) -> Iterator[None]:
    yield


@contextmanager
def head_without_cable(cluster: Cluster) -> Iterator[None]:
    cluster["head"].cable(plugged=False)
    try:
        yield
    finally:
        cluster["head"].cable(plugged=True)


@contextmanager
def without_model(cluster: Cluster) -> Iterator[None]:
    with mounted(cluster["worker2"], "-t", "tmpfs", "tmpfs", ROOT / MODEL):
        yield


@contextmanager
def other_versions(cluster: Cluster) -> Iterator[None]:
    """Another isobit on worker1, another Ray on worker2, by what their installers wrote."""
    with (
        mounted_version(cluster["worker1"], "isobit", "0.0.1"),
        mounted_version(cluster["worker2"], "ray", "2.0.1"),
    ):
        yield


@contextmanager
def port_taken(cluster: Cluster) -> Iterator[None]:
    """Another program listens where the head of a cluster is expected."""
    head = cluster["head"]
    server = head.start("python", "-m", "http.server", str(OTHER_PORT))
    try:
        yield
    finally:
        head.run("pkill", "--full", f"http.server {OTHER_PORT}").check()
        server.communicate()


@contextmanager
def no_route(cluster: Cluster) -> Iterator[None]:
    """The workers cannot reach each other; the head reaches both."""
    route = f"{cluster['worker2'].address}/32"
    cluster["worker1"].run("ip", "route", "add", "unreachable", route).check()
    try:
        yield
    finally:
        cluster["worker1"].run("ip", "route", "del", "unreachable", route).check()


@contextmanager
def mounted(host: Host, *words: object) -> Iterator[None]:
    """`mount` on one host, for the length of a block."""
    host.run("mount", *map(str, words)).check()
    try:
        yield
    finally:
        host.run("umount", str(words[-1])).check()


@contextmanager
def mounted_version(host: Host, package: str, version: str) -> Iterator[None]:
    """Another version in a package's metadata, on one host."""
    found = metadata.distribution(package)
    path = Path(str(found.locate_file(""))) / f"{package}-{found.version}.dist-info" / "METADATA"
    text = path.read_text().replace(f"\nVersion: {found.version}\n", f"\nVersion: {version}\n")
    host.write(f"/tmp/{package}-METADATA", text)  # noqa: S108
    with mounted(host, "--bind", f"/tmp/{package}-METADATA", path.resolve()):  # noqa: S108
        yield
    host.run("rm", f"/tmp/{package}-METADATA").check()  # noqa: S108


MISSING_HOST = Fault(
    name="a worker missing",
    code="E-RAY-RESOURCES",
    words=("asked", "present", "missing", "10.77.0.1", "10.77.0.2", "10.77.0.3"),
    done=nothing,
)
"""To be tried where worker1 is gone."""

FAULTS = (
    Fault(
        name="head not reachable",
        code="E-RAY-CONNECT",
        words=("10.77.0.1:6379",),
        done=head_without_cable,
        host="worker1",
    ),
    Fault(
        name="too few GPUs",
        code="E-RAY-RESOURCES",
        words=("3 GPUs", "10.77.0.1", "10.77.0.2", "10.77.0.3"),
        done=nothing,
        options=("--device", "cuda"),
    ),
    Fault(
        name="other isobit, other Ray on hosts",
        code="E-RAY-VERSION",
        words=("10.77.0.2", "isobit 0.0.1", "10.77.0.3", "ray 2.0.1"),
        done=other_versions,
    ),
    Fault(
        name="model missing on a host",
        code="E-MODEL-MISSING",
        words=("worker2 (rank 2)", MODEL),
        done=without_model,
    ),
    Fault(
        name="another token",
        code="E-RAY-AUTH",
        words=("10.77.0.1:6379", "RAY_AUTH_TOKEN"),
        done=nothing,
        environment=(f"RAY_AUTH_TOKEN={'0' * 64}",),
    ),
    Fault(
        name="port taken by another program",
        code="E-RAY-CONNECT",
        words=(f"10.77.0.1:{OTHER_PORT}", "another program"),
        done=port_taken,
        address=f"10.77.0.1:{OTHER_PORT}",
    ),
    Fault(
        name="no route between workers",
        code="E-NET-ROUTE",
        words=("10.77.0.2", "10.77.0.3"),
        done=no_route,
    ),
)


def run(fault: Fault, cluster: Cluster) -> str:
    """Start a run under a fault; raises ClusterError when it is not refused as it should be."""
    address = fault.address or cluster.address
    command = generate(fault.degree, "--ray-address", address, *fault.options, as_json=False)
    environment = ("env", "RAY_AUTH_MODE=token", *fault.environment)
    with fault.done(cluster):
        outcome = cluster[fault.host].run(*environment, *command, timeout_s=3 * TIMEOUT_S)
    said = f"{outcome.stdout}{outcome.stderr}"
    absent = [word for word in (fault.code, *fault.words) if word not in said]
    if outcome.status != 2 or absent or "Traceback" in said:
        raise ClusterError(f"exit status {outcome.status}; not said: {', '.join(absent)}\n{said}")
    if outcome.seconds > TIMEOUT_S:
        raise ClusterError(f"it took {outcome.seconds:.0f} s to say\n{said}")
    return f"after {outcome.seconds:.1f} s: " + next(
        line for line in said.splitlines() if fault.code in line
    )
