"""The software of each host against the driver's, before any rank is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isobit.errors import EnvironmentFault

from .nodes import Node

MISSING = "not installed"
SOURCE = "isobit source"


@dataclass(frozen=True, kw_only=True)
class HostReport:
    """What one host says of itself. `versions` are those of python, isobit, ray and torch.

    SOURCE is a digest of isobit's Python files: two working copies of one version differ.
    """

    hostname: str
    versions: Mapping[str, str]


def reporter() -> Callable[[], dict[str, Any]]:
    """A function that returns the fields of a HostReport where it is called.

    Ray sends it by value, since it is a closure, so that a host without isobit can answer as well.
    """

    def report() -> dict[str, Any]:
        import hashlib
        import importlib.util
        import platform
        import socket
        from importlib import metadata
        from pathlib import Path

        def version(package: str) -> str:
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                return "not installed"

        def source() -> str:
            digest = hashlib.sha256()
            errors = importlib.util.find_spec("isobit.errors")
            if errors is not None and errors.origin is not None:
                digest.update(b"errors.py\0" + Path(errors.origin).read_bytes())
            for room in ("kernels", "shard", "runtime", "launch"):
                found = importlib.util.find_spec(f"isobit.{room}")
                folders = () if found is None else found.submodule_search_locations or ()
                files = {
                    file.relative_to(folder).as_posix(): file
                    for folder in map(Path, folders)
                    for file in folder.rglob("*.py")
                }
                for name in sorted(files):
                    digest.update(f"{room}/{name}\0".encode() + files[name].read_bytes())
            return digest.hexdigest()[:12]

        versions = {"python": platform.python_version()}
        versions |= {package: version(package) for package in ("isobit", "ray", "torch")}
        try:
            versions["isobit source"] = source()
        except ImportError:
            versions["isobit source"] = "cannot be imported"
        return {"hostname": socket.gethostname(), "versions": versions}

    return report


def driver_report() -> HostReport:
    """The software of this process."""
    return HostReport(**reporter()())


def node_versions(nodes: Sequence[Node], timeout_s: float) -> dict[str, HostReport]:
    """Ask nodes of the connected cluster, by node id; one that does not answer is left out."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    report = ray.remote(num_cpus=0, max_retries=0)(reporter())
    asked = {
        node.id: report.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote()
        for node in nodes
    }
    ready, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    for task in late:
        ray.cancel(task, force=True)
    found = {}
    for name, task in asked.items():
        if task in ready:
            with contextlib.suppress(RayError):
                found[name] = HostReport(**ray.get(task))
    return found


def check_versions(driver: HostReport, hosts: Mapping[str, HostReport]) -> None:
    """Compare each host, by the name people know it by, with the driver.

    Raises EnvironmentFault E-RAY-VERSION that lists every difference of every host.
    """
    lines: list[str] = []
    for name, report in hosts.items():
        lines += [
            f"  {name}: {package} {found}; the driver has {driver.versions[package]}"
            for package, found in differing(driver.versions, report.versions, MISSING)
        ]
    if lines:
        count = len({line.partition(": ")[0] for line in lines})
        raise EnvironmentFault(
            "E-RAY-VERSION",
            f"{count} of {len(hosts)} hosts {'has' if count == 1 else 'have'} other software than "
            "the driver; ranks would disagree. Install the same there\n" + "\n".join(lines),
        )


def differing(
    driver: Mapping[str, str], host: Mapping[str, str], unknown: str
) -> list[tuple[str, str]]:
    """What a host has otherwise than the driver: package and version there, `unknown` where it says
    nothing. Another version of isobit has another source: one line is enough."""
    found = [(package, host.get(package, unknown)) for package in driver]
    return [
        (package, version)
        for package, version in found
        if version != driver[package]
        and not (package == SOURCE and host["isobit"] != driver["isobit"])
    ]
