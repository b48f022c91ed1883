"""Joining a cluster: every way in which it fails is one error, and soon."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from isobit.errors import EnvironmentFault, InputError, IsobitError
from isobit.launch.cluster.ray import head_probe
from isobit.launch.cluster.ray.auth import cluster_auth, ray_environment
from isobit.launch.cluster.ray.head_probe import check_head
from isobit.launch.cluster.ray.session import ray_session

OURS = {"ray": version("ray"), "python": platform.python_version()}


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of something that listens and is no Ray."""
    with socket.create_server(("127.0.1.9", 0)) as server:
        yield f"127.0.1.9:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_token_of_the_machine(monkeypatch, tmp_path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def refused(address: str) -> IsobitError:
    with pytest.raises(IsobitError) as caught, ray_session(address, 1):
        pass
    assert caught.value.exit_status == 2
    return caught.value


@pytest.mark.timeout(100)  # Ray itself would try for two minutes
def test_a_head_that_is_not_there_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = refused(f"127.0.0.1:{port}")
    assert isinstance(error, EnvironmentFault) and error.code == "E-RAY-CONNECT"
    assert f":{port}: connection refused" in error.message


def test_a_port_that_another_program_has_taken(listener, monkeypatch, capfd):
    monkeypatch.setattr(head_probe, "ANSWER_S", 3.0)
    error = refused(listener)
    assert error.code == "E-RAY-CONNECT"
    assert f"something listens at {listener}" in error.message
    assert "Has another program taken the port?" in error.message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("address", "code", "text"),
    [
        ("nobody.invalid:6379", "E-RAY-CONNECT", "no head of a Ray cluster answers"),
        ("ray://10.0.0.1:10001", "E-USAGE", "has to run on a host of the cluster"),
        ("somewhere", "E-USAGE", "expected auto or HOST:PORT"),
        ("10.0.0.1:port", "E-USAGE", "expected auto or HOST:PORT"),
    ],
)
def test_addresses_that_lead_nowhere(address, code, text):
    error = refused(address)
    assert error.code == code
    assert text in error.message


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        ({"cluster": OURS, "joined": False}, "E-RAY-CONNECT", "ray start --address="),
        (
            {"cluster": {"ray": "2.9.0", "python": "3.9.1"}, "joined": True},
            "E-RAY-VERSION",
            f"  ray: the cluster 2.9.0, this host {OURS['ray']}\n"
            f"  python: the cluster 3.9.1, this host {OURS['python']}",
        ),
        ({"error_class": "AuthenticationError", "error": ""}, "E-RAY-AUTH", "there is none here"),
    ],
    ids=["outside", "versions", "token"],
)
def test_what_a_head_answers(listener, monkeypatch, answer, code, text):
    done = subprocess.CompletedProcess([], 0, json.dumps(answer), "")
    monkeypatch.setattr(head_probe.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(EnvironmentFault) as caught:
        check_head(listener)
    assert caught.value.code == code
    assert text in caught.value.message


def test_auto_without_a_cluster(monkeypatch):
    """Ray looks at all processes of the machine, other people's clusters among them."""
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    error = refused("auto")
    assert error.code == "E-RAY-CONNECT"
    assert "no Ray cluster runs on this host" in error.message


def test_the_mode_is_always_explicit(monkeypatch, tmp_path):
    assert cluster_auth() == {"RAY_AUTH_MODE": "disabled"}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    assert cluster_auth() == {"RAY_AUTH_MODE": "token"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert cluster_auth() == {"RAY_AUTH_MODE": "disabled"}


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"RAY_AUTH_MODE": "tokens"}, "expected token or disabled"),
        ({"RAY_AUTH_MODE": "token"}, "there is no token"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "/no/such/file: No such file"),
    ],
    ids=["unknown", "none", "no file"],
)
def test_authentication_that_cannot_work(monkeypatch, variables, text):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=text) as caught:
        cluster_auth()
    assert caught.value.code == "E-RAY-AUTH"


READS = "import os, json; print(json.dumps([os.environ.get('RAY_AUTH_TOKEN')]))"


def test_a_token_is_only_there_while_it_is_used(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "before")

    def seen() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", READS], capture_output=True, text=True, check=True, timeout=30
        )
        return json.loads(done.stdout)

    with ray_environment({"RAY_AUTH_TOKEN": "inside"}):
        assert seen() == ["inside"]
    assert seen() == ["before"]
