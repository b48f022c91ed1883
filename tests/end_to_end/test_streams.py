"""Standard output and error: the version, a reader that leaves, more threads than cores."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from isobit.kernels import ops
from isobit.launch.cli.options import engine as options

from ..command import command, scratch
from ..support import INT4

__all__ = ["command", "scratch"]

pytestmark = pytest.mark.usefixtures("scratch")
GENERATE = ("generate", INT4, "--prompt-ids", "5,6", "--max-tokens", "2", "--ignore-eos")


def test_version(command):
    outcome = command("--version")
    assert (outcome.status, outcome.stderr) == (0, "")
    words = outcome.stdout.split()
    assert outcome.stdout.count("\n") == 1
    assert words[0] == "isobit"
    assert f"torch {torch.__version__}," in outcome.stdout
    assert words[-1] == ops.backend()["isa"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("plan", INT4, "--explain"),
        ("plan", INT4, "--json"),
        (*GENERATE, "--launcher", "local"),
    ],
    ids=["help", "tables", "json", "tokens"],
)
def test_a_reader_that_is_gone(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "isobit.launch.cli", *map(str, arguments)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("degree", "threads", "told"), [(1, 4, None), (1, 5, "1 rank"), (2, 3, "2 ranks"), (2, 0, None)]
)
def test_more_threads_than_cores(command, monkeypatch, degree, threads, told):
    monkeypatch.setattr(options, "cores", lambda: 4)
    arguments = (*GENERATE, "--launcher", "local", "-tp", degree, "--threads", threads, "--json")
    outcome = command(*arguments)
    assert outcome.status == 0
    assert len(outcome.json()["tokens"]) == 2
    if told is None:
        assert outcome.stderr == ""
    else:
        assert outcome.stderr.count("\n") == 1
        assert outcome.stderr.startswith(f"warning {told} with --threads {threads}")
        assert "on 4 cores" in outcome.stderr
