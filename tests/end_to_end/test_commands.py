"""The commands as people and programs run them, with Ray and with plain processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors import safe_open

from ..command import command, processes_marked, scratch
from ..support import DENSE, INT4, copy_model, isobit

__all__ = ["command", "scratch"]

pytestmark = pytest.mark.usefixtures("scratch")
IDS = ("--prompt-ids", "5,6,7,8,9")
LOCAL = ("--launcher", "local")


@pytest.mark.parametrize(("layout", "padded"), [("pad", 512), ("ragged", 416)])
@pytest.mark.parametrize("degree", [1, 3, 8])
def test_plan_says_what_is_cut_where(command, degree, layout, padded):
    outcome = command("plan", INT4, "-tp", degree, "--layout", layout, "--json")
    report = outcome.json()
    assert outcome.status == 0
    assert (report["tp"], report["atoms"], report["layout"]) == (degree, 8, layout)
    assert set(report["dims"]) == {"intermediate", "heads", "vocab"}
    for name, true, padded_size, unit in (
        ("intermediate", 416, padded, 32),
        ("heads", 6, 6, 1),
        ("vocab", 2000, 2048, 64),
    ):
        dimension = report["dims"][name]
        assert (dimension["true"], dimension["padded"]) == (true, padded_size), name
        assert dimension["unit"] == unit
        assert len(dimension["atom_sizes"]) == 8
        assert len(dimension["per_rank"]) == degree
        assert sum(dimension["atom_sizes"]) == sum(dimension["per_rank"]) == padded_size
    assert len(report["hash"]) == 16


def test_plan_needs_no_weights(command, tmp_path):
    model = copy_model(INT4, tmp_path / "model")
    (model / "model.safetensors").unlink()
    with_weights = command("plan", INT4, "-tp", "2", "--json").json()
    assert command("plan", model, "-tp", "2", "--json").json()["hash"] == with_weights["hash"]


def test_quantize_generate_verify(command, tmp_path):
    out = tmp_path / "int4"
    done = command("quantize", DENSE, out, "--group-size", "32", "--json")
    assert done.status == 0
    summary = done.json()
    assert summary["quantized"] == 5 * 7
    assert summary["written_bytes"] < summary["source_bytes"]
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "model.layers.4.mlp.down_proj.weight_packed" in file.keys()  # noqa: SIM118

    arguments = (*IDS, *LOCAL, "--max-tokens", "4", "--json")
    generated = command("generate", out, "-tp", "2", "--ignore-eos", *arguments)
    assert generated.status == 0
    answer = generated.json()
    assert len(answer["tokens"]) == 4
    assert [rank["rank"] for rank in answer["ranks"]] == [0, 1]

    verified = command("verify", out, "--degrees", "1,3", *arguments)
    assert verified.status == 0
    report = verified.json()
    assert report["identical"] is True
    assert report["first_difference"] is None
    assert set(report["degrees"]) == {"1", "3"}
    for degree in report["degrees"].values():
        assert degree["prompts"][0] == {
            "tokens": answer["tokens"],
            "logits_digest": answer["logits_digest"],
        }


def test_what_streams_is_what_json_holds(command):
    arguments = ("generate", INT4, "-p", "def main(", *LOCAL, "--max-tokens", 6, "--ignore-eos")
    streamed, whole = command(*arguments), command(*arguments, "--json").json()
    assert streamed.status == 0
    # A character whose last byte has not come yet is not shown.
    assert streamed.stdout == "def main(" + whole["text"].rstrip("\N{REPLACEMENT CHARACTER}") + "\n"
    assert whole["logits_digest"] in streamed.stderr.replace("\n", "")


def test_ray_and_plain_processes_give_the_same_bits(command):
    arguments = ("generate", INT4, "-tp", "2", *IDS, "--max-tokens", "4", "--ignore-eos", "--json")
    by_ray = isobit(*map(str, arguments), "--launcher", "ray")
    assert by_ray.returncode == 0, by_ray.stderr
    ours, theirs = json.loads(by_ray.stdout), command(*arguments, *LOCAL).json()
    for key in ("tokens", "logits_digest", "plan", "kernels"):
        assert ours[key] == theirs[key], key
    assert ours["digests_agree"] is True


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_ctrl_c_during_generation_ends_everything(launcher, scratch):
    """The whole process group gets the signal, as from a terminal."""
    arguments = ["generate", INT4, "-tp", "2", *IDS, "--max-tokens", "1000", "--ignore-eos"]
    process = subprocess.Popen(
        [sys.executable, "-m", "isobit.launch.cli", *arguments, "--launcher", launcher],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        first = process.stdout.read(1)
        assert first.isdigit(), process.stderr.read()
        assert len(processes_marked(scratch.name)) >= 3
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert b"E-INTERRUPTED" in stderr
    assert b"Traceback" not in stderr
    assert len(stdout.split()) < 999
