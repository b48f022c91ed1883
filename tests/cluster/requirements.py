"""What hosts on one machine need: root, namespaces, and a few Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess

PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "rsync": "rsync",
    "ps": "procps",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
NAMESPACES = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount")
APT_TIMEOUT_S = 300


def why_not() -> str | None:
    """Install the packages that are missing; return why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "namespaces with veth pairs need root"
    missing = sorted({package for tool, package in PACKAGES.items() if not _has(tool)})
    if missing:
        if not _has("apt-get"):
            return f"missing {', '.join(missing)}, and there is no apt-get to install them"
        problem = _apt_install(missing)
        if problem:
            return f"apt-get could not install {', '.join(missing)}: {problem}"
    tried = subprocess.run(
        [*NAMESPACES, "ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth2"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if tried.returncode != 0:
        return f"namespaces or veth pairs are not allowed: {tried.stderr.strip()}"
    return None


def _has(tool: str) -> bool:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None


def _apt_install(packages: list[str]) -> str | None:
    """Return what went wrong. No service is started: the hosts start their own sshd."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "--yes", "--no-install-recommends", *packages],
    ):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=APT_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return f"no end of {' '.join(command)} within {APT_TIMEOUT_S} s"
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["no message"])[-1]
    return None
