"""Hosts as namespaces of this machine: network, processes, mounts, name, and sshd as process 1.

A host shares the machine's files but for /tmp, /dev/shm, /run, its home and its name. It hangs on
a switch by a veth pair and reaches nothing but the other hosts. Everything is made inside the
network, process and mount namespaces of the caller, so that nothing is left when that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .requirements import NAMESPACES

ROOT = Path(__file__).parents[2]
NETWORK = "10.77.0"
SWITCH = "switch"
HOME = "/tmp/home"  # noqa: S108
START_TIMEOUT_S = 20
MARK = "ISOBIT_CLUSTER_TEST"
"""An environment variable that every process of a run inherits, to be found by."""


class ClusterError(Exception):
    """A stage did not go as it should; the text says what was seen."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    command: str
    status: int
    stdout: str
    stderr: str
    seconds: float

    def check(self, status: int = 0) -> Outcome:
        """Return self; raises ClusterError with all that was printed on another exit status."""
        if self.status != status:
            raise ClusterError(
                f"{self.command}: exit status {self.status}, expected {status}\n{self}"
            )
        return self

    def __str__(self) -> str:
        return f"{self.stdout}{self.stderr}".rstrip()


class Network:
    """A switch and the hosts on it; `close` ends all of them."""

    def __init__(self, scratch: Path, logs: Path, addresses: dict[str, int]) -> None:
        """`scratch` is an empty folder; `addresses` maps a host's name to its last octet."""
        self._scratch, self._logs, self._addresses = scratch, logs, addresses
        self.hosts: dict[str, Host] = {}
        common = scratch / "common"
        common.mkdir()
        _write_common_files(common, {h: f"{NETWORK}.{n}" for h, n in addresses.items()})
        _ip("link", "set", "lo", "up")
        _ip("link", "add", SWITCH, "type", "bridge")
        _ip("link", "set", SWITCH, "up")

    def start(self, name: str) -> Host:
        """Start a host, for the first time or after `kill`, and wait for its sshd."""
        address = f"{NETWORK}.{self._addresses[name]}"
        self.hosts[name] = host = Host(name, address, self._scratch, self._logs)
        return host

    def close(self) -> None:
        for host in self.hosts.values():
            host.kill()
        _ip("link", "del", SWITCH)


class Host:
    """One host, running from its making to `kill`."""

    def __init__(self, name: str, address: str, scratch: Path, logs: Path) -> None:
        self.name, self.address, self._port = name, address, f"port-{name}"
        folder = scratch / name
        folder.mkdir(exist_ok=True)
        script = Path(__file__).with_name("host.sh")
        becoming = ["bash", script, folder, name, scratch / "common", *_python_below_tmp()]
        with (logs / f"{name}-sshd.log").open("a") as log:
            self._unshare = subprocess.Popen(
                [*NAMESPACES, "--uts", "--ipc", *becoming],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "ready\n":
            raise ClusterError(f"host {name} did not start: see {name}-sshd.log")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self._init = int(children.read_text())
        self._connect()

    def _connect(self) -> None:
        # A host that comes back has its old card: neighbours remember the hardware address.
        card = f"02:00:00:00:00:{int(self.address.rpartition('.')[2]):02x}"
        peer = ["name", "eth0", "address", card, "netns", str(self._init)]
        _ip("link", "add", self._port, "type", "veth", "peer", *peer)
        _ip("link", "set", self._port, "master", SWITCH, "up")
        self.run("ip", "link", "set", "lo", "up").check()
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0").check()
        self.run("ip", "link", "set", "eth0", "up").check()
        # Nobody answers there, but a host asks its default route for its own address.
        self.run("ip", "route", "add", "default", "via", f"{NETWORK}.254").check()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/22").status != 0:
            if time.monotonic() > deadline:
                raise ClusterError(f"host {self.name}: sshd does not answer")
            time.sleep(0.1)

    def start(self, *command: str, log: Path | None = None) -> subprocess.Popen[str]:
        """Start a command on the host as a login there would; pipes, unless `log` is given."""
        namespaces = ["--net", "--pid", "--mount", "--uts", "--ipc"]
        out = subprocess.PIPE if log is None else log.open("w")
        return subprocess.Popen(
            ["nsenter", "--target", str(self._init), *namespaces, f"--wd={ROOT}", *command],
            env=login_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE if log is None else subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, timeout_s: float = 180) -> Outcome:
        """Run a command on the host to its end; raises ClusterError when it takes longer."""
        return finish(self.start(*command), command, timeout_s)

    def write(self, path: str, text: str) -> None:
        """Write a private file below the host's own /tmp."""
        inside = Path(f"/proc/{self._init}/root{path}")
        inside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        inside.write_text(text)
        inside.chmod(0o600)

    def read(self, path: str) -> str:
        """Read a file as the host sees it."""
        return Path(f"/proc/{self._init}/root{path}").read_text()

    def files(self, folder: str, pattern: str) -> list[str]:
        """Paths in a folder as the host sees them."""
        inside = Path(f"/proc/{self._init}/root{folder}")
        return [f"{folder}/{path.name}" for path in sorted(inside.glob(pattern))]

    def cable(self, plugged: bool) -> None:
        """Pull the cable out of the switch, or put it back: packets vanish without a word."""
        _ip("link", "set", self._port, "up" if plugged else "down")

    def kill(self) -> None:
        """End every process of the host at once, and its interface."""
        if self.alive:
            os.kill(self._init, signal.SIGKILL)
            self._unshare.wait(START_TIMEOUT_S)
            deadline = time.monotonic() + START_TIMEOUT_S
            while Path(f"/sys/class/net/{self._port}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self._unshare.poll() is None

    def processes(self) -> list[str]:
        """Command lines of what runs on the host, but for sshd and the look itself."""
        lines = self.run("ps", "-eo", "pid=,args=").check().stdout.splitlines()
        commands = [line.split(maxsplit=1)[1] for line in lines]
        return [c for c in commands if not c.startswith(("sshd", "/usr/sbin/sshd", "ps -eo"))]


def finish(process: subprocess.Popen[str], command: tuple[str, ...], timeout_s: float) -> Outcome:
    """Wait for a command with pipes; raises ClusterError when it takes longer than allowed."""
    begin = time.monotonic()
    text = " ".join(command)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill_child(process)
        seen = b"".join(part for part in (error.stdout, error.stderr) if part).decode()
        raise ClusterError(f"{text}: no end within {timeout_s:.0f} s\n{seen}") from None
    return Outcome(text, process.returncode, stdout, stderr, time.monotonic() - begin)


def _kill_child(nsenter: subprocess.Popen[str]) -> None:
    """End what nsenter runs, so that nsenter reaps it: a zombie would keep its namespace."""
    children = Path(f"/proc/{nsenter.pid}/task/{nsenter.pid}/children")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    nsenter.wait(START_TIMEOUT_S)


def login_environment() -> dict[str, str]:
    """What a login on a host exports: its .bashrc says the same."""
    path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    login = {"HOME": HOME, "USER": "root", "PATH": path, "LANG": "C.UTF-8", "TERM": "dumb"}
    return login | {MARK: os.environ[MARK]}


def _write_common_files(folder: Path, addresses: dict[str, str]) -> None:
    for key in ("key", "host_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(make, check=True, timeout=START_TIMEOUT_S)
    lines = [f"{address} {name}\n" for name, address in addresses.items()]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    entries = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
    moved = [":".join([*e[:5], HOME, "/bin/bash"] if e[0] == "root" else e) for e in entries]
    (folder / "passwd").write_text("\n".join(moved) + "\n")
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (folder / "venv").symlink_to(sys.prefix)
    exports = [f'export {name}="{value}"\n' for name, value in login_environment().items()]
    (folder / "bashrc").write_text("".join(exports))


def _python_below_tmp() -> list[str]:
    """Folders that a host's own /tmp would hide: this repository and the Python that runs."""
    folders: list[str] = []
    for folder in (str(ROOT), sys.prefix, sys.base_prefix):
        if folder.startswith("/tmp/") and not any(  # noqa: S108
            folder == f or folder.startswith(f"{f}/") for f in folders
        ):
            folders.append(folder)
    return folders


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=START_TIMEOUT_S)
    if done.returncode != 0:
        raise ClusterError(f"ip {' '.join(words)}: {done.stderr.strip()}")
