"""A connection to Ray for the length of a block: a private one, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from isobit.errors import EnvironmentFault, InputError

from ....runtime.ranks.launcher import cores
from ....runtime.transport.private_folder import PrivateFolder
from ...endings import ends_within, kill_descendants, leave_at_once
from ...interrupts import held_interrupts
from .auth import cluster_auth, private_auth, ray_environment
from .head_probe import check_head
from .reach import silence

log = logging.getLogger("isobit.launch")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""`ray start` sets the first to 1, Ray to the cores of a task; ranks start threads of their own."""
RANKS_ENVIRONMENT = {
    **dict.fromkeys(THREADS, "1"),
    # Every GPU of a host stays visible, as peers need it; a rank is told its own by index.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE_BYTES = 80 << 20
BELOW = "/r"
SHUT_DOWN_S = 15.0
STDERR = 2
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
LONGEST_RAY_SOCKET = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


@contextmanager
def ray_session(address: str | None, most_ranks: int) -> Iterator[None]:
    """A Ray to place ranks on: the cluster at `address`, or one that lives as long as the block.

    The private Ray listens on loopback, wants a random token, and leaves no file behind. Raises
    EnvironmentFault E-RAY-CONNECT when Ray cannot be started or reached, and as check_head;
    InputError E-RAY-AUTH and E-USAGE.
    """
    # What a private Ray starts inherits; on a cluster Ray has to carry it to the hosts.
    private_variables = private_auth() | RANKS_ENVIRONMENT | _quiet()
    variables = private_variables if address is None else cluster_auth()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as cleanup:
        cleanup.enter_context(ray_environment(variables))
        if address is not None:
            address = _resolved(address)
            check_head(address)
        import ray
        from ray.exceptions import RayError

        settings: dict[str, Any] = {
            "address": address,
            "logging_level": logging.ERROR,
            "log_to_driver": False,
            "namespace": "isobit",
            "runtime_env": None if address is None else {"env_vars": RANKS_ENVIRONMENT},
        }
        with held_interrupts():
            if address is None:
                private = PrivateFolder("ray-", len(BELOW) + LONGEST_RAY_SOCKET)
                cleanup.callback(private.close)
                settings |= {
                    "address": "local",
                    "num_cpus": max(most_ranks, cores()),
                    "include_dashboard": False,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    # Ray opens its folder to everybody; nobody gets to it through its parent.
                    "_temp_dir": f"{private.path}{BELOW}",
                    "_node_ip_address": "127.0.0.1",
                }
            cleanup.enter_context(_messages_logged())
            cleanup.callback(_shut_down, private=address is None)
            if address is None:
                cleanup.enter_context(_loopback_stays())
            try:
                with _stderr_logged():
                    ray.init(**settings)
            except (OSError, ValueError, RuntimeError, RayError) as error:
                where = "a local Ray" if address is None else f"Ray at {address}"
                raise EnvironmentFault(
                    "E-RAY-CONNECT", f"{where} cannot be used: {str(error).splitlines()[0]}"
                ) from error
        yield


def _quiet() -> dict[str, str]:
    """Ray's C++ would write its errors to the terminal, where ours stand."""
    return {} if LOG_LEVEL in os.environ else {LOG_LEVEL: "fatal"}


def _resolved(address: str) -> str:
    """host:port of "auto", the last cluster started on this host, or of what people write.

    Raises InputError E-USAGE for what is no address, EnvironmentFault E-RAY-CONNECT for "auto"
    without a cluster.
    """
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise InputError(
            "E-USAGE",
            f"--ray-address {address}: ranks talk to this process themselves, so it has to "
            "run on a host of the cluster. There take --ray-address auto, or HOST:PORT",
        )
    if address != "auto" and not address.rpartition(":")[2].isdecimal():
        raise InputError("E-USAGE", f"--ray-address {address}: expected auto or HOST:PORT")
    try:
        return str(canonicalize_bootstrap_address(address))
    except ValueError as error:
        raise InputError("E-USAGE", f"--ray-address {address}: {error}") from error
    except OSError as error:
        raise EnvironmentFault(
            "E-RAY-CONNECT",
            f"--ray-address {address}: no Ray cluster runs on this host. Start one with "
            "`ray start --head`, join one with `ray start --address=HEAD:6379`, or give HOST:PORT",
        ) from error


def head_is_gone() -> bool:
    """Whether the connected Ray has lost its head: then Ray waits a minute in every call, and ends
    this process after it.
    """
    import ray

    if not ray.is_initialized():
        return False
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return silence((host, int(port))) is not None


@contextmanager
def _loopback_stays() -> Iterator[None]:
    """Let Ray keep 127.0.0.1 as the address of its node, and so listen there alone.

    It would take the address of the network instead, for hosts that a private Ray does not have.
    """
    from ray._private import services

    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


@contextmanager
def _stderr_logged() -> Iterator[None]:
    """Log what Ray's C++ writes to standard error while it starts: our own messages stand there."""
    sys.stderr.flush()
    kept = os.dup(STDERR)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(kept, STDERR)
            os.close(kept)
            written.seek(0)
            if said := written.read().decode(errors="replace").strip():
                log.info("Ray: %s", said)


@contextmanager
def _messages_logged() -> Iterator[None]:
    """Log what Ray prints about other processes: it takes standard output, which is not its own.

    A dead raylet's last twenty lines would stand beside our one error, or in front of our JSON.
    """
    from ray._private import worker

    def note(data: dict[str, Any], **_how: Any) -> None:
        log.info("Ray: %s", "\n".join(map(str, data["lines"])))

    before, worker.print_to_stdstream = worker.print_to_stdstream, note
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _shut_down(private: bool) -> None:
    """Leave Ray, and end a private one: by its own means if its head still answers.

    Without a head Ray would wait for it a minute and then end this process with a status of its
    own. The signal of a terminal or of `timeout` reaches Ray's processes as well as this one.
    """
    import ray

    with held_interrupts():
        if not head_is_gone() and ends_within(SHUT_DOWN_S, ray.shutdown):
            return
        log.info("Ray does not answer: its processes are killed")
        if private:
            kill_descendants()
        leave_at_once()
