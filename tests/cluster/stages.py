"""What is done on the hosts, stage by stage. A stage raises ClusterError with what it saw."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from .cluster import MODEL, WORKERS, Cluster
from .hosts import ClusterError, Host, Outcome, finish

PROMPT = "def read_lines("
ANSWER_TOKENS = 40
LONG_TOKENS = 900
RUN_TIMEOUT_S = 90
LOSS_TIMEOUT_S = 15
QUIET_TIMEOUT_S = 60
STREAMED_CHARACTERS = 60
LOST = ("E-HOST-LOST", "E-RANK-DIED")
LEFT_IN = ("/tmp", "/dev/shm")  # noqa: S108
RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Stages:
    """The stages of a run without faults, and of losing a host. Each returns a line to show."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._tokens: list[int] = []
        self._one_host: dict[str, Any] = {}

    def one_host(self) -> str:
        """What plain processes on one host answer: the truth for all that follows."""
        desk = self._cluster["desk"]
        self._one_host = answer(desk.run(*verify("--launcher", "local")))["degrees"]
        self._tokens = self._one_host["1"]["tokens"]
        return f"{len(self._tokens)} tokens; digest {self._one_host['1']['logits_digest']}"

    def up(self) -> str:
        self._cluster.up()
        return f"{len(WORKERS) + 1} hosts of one core"

    def check(self) -> str:
        """`isobit cluster check` finds every host, and nothing wrong with any."""
        options = ("--hosts", str(len(WORKERS) + 1), *self._address())
        seen = self._on_head("isobit", "cluster", "check", MODEL, *options).check().stdout
        (self._cluster.logs / "check.txt").write_text(seen)
        absent = [
            h.name
            for n, h in self._cluster.network.hosts.items()
            if n != "desk" and h.address not in seen
        ]
        if absent:
            raise ClusterError(f"hosts that the table lacks: {', '.join(absent)}\n{seen}")
        return seen.strip().splitlines()[-1]

    def across_hosts(self, degree: int) -> str:
        report = answer(self._on_head(*generate(degree, *self._address())))
        hosts = {rank["node"] for rank in report["ranks"]}
        if len(hosts) != degree:
            raise ClusterError(f"{degree} ranks ran on {len(hosts)} hosts: {sorted(hosts)}")
        if report["tokens"] != self._tokens:
            raise ClusterError(f"other tokens than on one host: {report['tokens']}")
        self.check_nothing_left()
        per_token = report["timing"]["decode_ms_per_step"]
        return f"the tokens of one host, from {degree} hosts; {per_token} ms each"

    def verify_across_hosts(self) -> str:
        degrees = answer(self._on_head(*verify(*self._address())))["degrees"]
        if degrees != self._one_host:
            raise ClusterError(f"other bits than on one host: {degrees}")
        return f"degrees {', '.join(degrees)}: the bits of one host"

    def lose(self, name: str, how: Callable[[Host], None], degree: int) -> str:
        """Lose a host in the middle of an answer: an error that names it, within 15 s."""
        lost = self._cluster[name]
        log = self._cluster.logs / f"lost-{name}.log"
        command = generate(degree, *self._address(), tokens=LONG_TOKENS, as_json=False)
        run = self._cluster["head"].start(*self._login(), *command, log=log)
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while PROMPT not in log.read_text() or len(log.read_text()) < STREAMED_CHARACTERS:
            if run.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"the run ended or hung before the loss\n{log.read_text()}")
            time.sleep(0.1)
        how(lost)
        outcome = finish(run, tuple(command), 4 * LOSS_TIMEOUT_S)
        said = log.read_text()
        error = said[said.rfind("E-") :].strip()
        if outcome.status != 1:
            raise ClusterError(f"exit status {outcome.status}, expected 1\n{said}")
        rank = "rank 2" if name == "worker2" else "rank 1"
        if not (error.startswith(LOST) and rank in error and lost.address in error):
            raise ClusterError(f"the error does not name {rank} on {lost.address}\n{said}")
        if outcome.seconds > LOSS_TIMEOUT_S:
            raise ClusterError(f"the error came after {outcome.seconds:.1f} s\n{said}")
        self.check_nothing_left()
        named = next(line for line in error.splitlines() if lost.address in line)
        return f"after {outcome.seconds:.1f} s: {named.strip()}"

    def check_nothing_left(self) -> None:
        """No rank, no socket and no shared memory of a run, on any of the hosts."""
        hosts = [host for host in self._cluster.network.hosts.values() if host.alive]
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        while left := [line for host in hosts for line in remains(host)]:
            if time.monotonic() > deadline:
                raise ClusterError("left behind:\n  " + "\n  ".join(left))
            time.sleep(0.2)

    def down(self) -> str:
        return self._cluster.down()

    def _on_head(self, *command: str) -> Outcome:
        return self._cluster["head"].run(*self._login(), *command, timeout_s=RUN_TIMEOUT_S)

    def _login(self) -> tuple[str, ...]:
        return ("env", "RAY_AUTH_MODE=token")

    def _address(self) -> tuple[str, ...]:
        return ("--ray-address", self._cluster.address)


def generate(
    degree: int, *options: str, tokens: int = ANSWER_TOKENS, as_json: bool = True
) -> list[str]:
    """The command line of one greedy answer of exactly `tokens` tokens."""
    words = ["isobit", "generate", MODEL, "-tp", str(degree), "--prompt", PROMPT]
    words += ["--max-tokens", str(tokens), "--ignore-eos", *options]
    return [*words, "--json"] if as_json else words


def verify(*options: str) -> list[str]:
    words = ["isobit", "verify", MODEL, "--degrees", "1,2,3", "--prompt", PROMPT]
    words += ["--max-tokens", str(ANSWER_TOKENS)]
    return [*words, *options, "--json"]


def answer(outcome: Outcome) -> dict[str, Any]:
    """The one JSON object that a command printed; raises ClusterError when it failed."""
    return json.loads(outcome.check().stdout)


OF_A_RUN = ("/bin/isobit ", "isobit.runtime.worker.server", "isobit rank ")
"""What stands in the command lines of drivers, of what forks ranks, and of ranks."""


def remains(host: Host) -> list[str]:
    """What a run of isobit left on a host: processes, files in /tmp, shared memory."""
    commands = [command for command in host.processes() if is_of_a_run(command)]
    files = [path for folder in LEFT_IN for path in host.files(folder, "isobit*")]
    return [f"{host.name}: {what}" for what in [*commands, *files]]


def is_of_a_run(command: str) -> bool:
    """Whether a command line is a rank or a driver; Ray keeps idle workers of its own."""
    if command.startswith("ray::"):
        return not command.startswith(RAYS_OWN)
    return any(part in command for part in OF_A_RUN)
