"""Who places ranks: plain processes where all fit this host, Ray where a cluster is named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from isobit.errors import InputError
from isobit.launch.placing import (
    LauncherName,
    chosen_device,
    chosen_launcher,
    cluster_address,
)
from isobit.runtime import devices

from ...support import INT4

AUTO, LOCAL, RAY = LauncherName.AUTO, LauncherName.LOCAL, LauncherName.RAY


@pytest.mark.parametrize(
    ("asked", "cluster", "ranks", "device", "comes_to"),
    [
        (AUTO, None, 8, "cpu", LOCAL),
        (AUTO, None, 2, "cuda", LOCAL),
        (AUTO, None, 3, "cuda", RAY),
        (AUTO, None, 3, "cuda:0,cuda:0,cuda:1", LOCAL),
        (AUTO, "10.0.0.1:6379", 1, "cpu", RAY),
        (LOCAL, None, 3, "cuda", LOCAL),
        (RAY, None, 1, "cpu", RAY),
    ],
)
def test_auto_takes_processes_where_all_ranks_fit(
    monkeypatch, asked, cluster, ranks, device, comes_to
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_launcher(asked, cluster, ranks, device) is comes_to


def test_a_cluster_is_named_by_the_option_before_the_environment(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(AUTO, None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert cluster_address(AUTO, None) == cluster_address(RAY, None) == "10.0.0.2:6379"
    assert cluster_address(AUTO, "10.0.0.1:6379") == "10.0.0.1:6379"
    assert cluster_address(LOCAL, None) is None
    with pytest.raises(InputError, match="no meaning with --launcher local"):
        cluster_address(LOCAL, "10.0.0.1:6379")


def test_cards_by_name_are_never_those_of_a_cluster(monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert chosen_device("cuda:0,cuda:0", AUTO, None, 2) == "cuda:0,cuda:0"
    for name, address in ((RAY, None), (AUTO, "10.0.0.1:6379")):
        with pytest.raises(InputError, match="Ray chooses GPUs itself"):
            chosen_device("cuda:0,cuda:0", name, address, 2)


RUN = """
import sys
from isobit.launch.cli.main import main
try:
    main()
finally:
    assert "ray" not in sys.modules, "Ray was imported"
"""


@pytest.mark.timeout(120)
def test_plain_commands_do_not_import_ray():
    arguments = ["generate", str(INT4), "--prompt-ids", "5,6", "--max-tokens", "1", "-tp", "2"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
