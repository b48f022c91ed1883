"""A calibration that was stopped goes on with the same bytes, at any degree, and leaves nothing."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isobit.errors import InputError, RankFault
from isobit.kernels.weights import memory
from isobit.runtime.calibration.calibrate import quantize_calibrated
from isobit.runtime.calibration.fingerprint import run_fingerprint
from isobit.runtime.calibration.state import CalibrationState, state_folder
from isobit.runtime.forward.layer_runner import LayerRunner
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.shard.names import layer_of
from isobit.shard.quantize.source import open_dense

from ...support import DENSE, ROOT, copy_model, save_tensors
from .test_calibrate import SETTINGS

SAMPLES = torch.randint(0, 1900, (3, 64), generator=torch.Generator().manual_seed(3))
LAYERS = 3
# Of a layer: three samples through it, quantizing, three samples through what was made of it.
CALLS = 7
GPTQ = {"method": "gptq", "degree": 1, "before": None}
KILLED = {
    "observing": {**GPTQ, "calls": CALLS + 2},
    "advancing": {**GPTQ, "calls": CALLS + 6},
    "in the first layer": {**GPTQ, "calls": 3},
    "with all reports and no tensors of a layer": {**GPTQ, "before": "keep", "calls": 4},
    "with two residual streams": {**GPTQ, "before": "has_layer", "calls": 2},
    "assembling": {**GPTQ, "before": "layer_tensors", "calls": 3},
    "on two ranks": {**GPTQ, "method": "awq", "degree": 2, "calls": CALLS + 2},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The first layers of the example model."""
    folder = tmp_path_factory.mktemp("models") / "model"
    copy_model(DENSE, folder, num_hidden_layers=LAYERS, layer_types=None)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: each for name, each in tensors.items() if (layer_of(name) or 0) < LAYERS}
    save_tensors(folder, kept)
    return folder


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What a run that nobody stops writes at degree 1: contents by file name."""
    done: dict[str, dict[str, bytes]] = {}

    def make(method: str) -> dict[str, bytes]:
        if method not in done:
            out = tmp_path_factory.mktemp("whole") / "out"
            quantize_calibrated(model, out, SAMPLES, SETTINGS[method])
            done[method] = contents(out)
        return done[method]

    return make


@pytest.fixture(scope="module")
def killed(model, tmp_path_factory) -> Path:
    """A folder where calibrations killed themselves, each on the way to an OUT of its own."""
    top = tmp_path_factory.mktemp("killed")
    for name in KILLED:
        (top / name).mkdir()
    (top / "samples.json").write_text(json.dumps(SAMPLES.tolist()))
    jobs = {f"{name}/out": job for name, job in KILLED.items()}
    script = "tests.end_to_end.quantize.killed_calibration"
    command = [sys.executable, "-m", script, model, top, json.dumps(jobs)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200)
    return top


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_started_again(model, killed, whole, name):
    out, notes = killed / name / "out", []
    assert not out.exists()
    method = KILLED[name]["method"]
    quantize_calibrated(model, out, SAMPLES, SETTINGS[method], note=notes.append)
    assert contents(out) == whole(method)
    assert list(out.parent.iterdir()) == [out]
    assert len(notes) == 1


@pytest.mark.usefixtures("killed_state")
def test_what_is_finished_is_not_done_again(model, tmp_path):
    seen: list[int] = []
    quantize_calibrated(
        model, tmp_path / "out", SAMPLES, SETTINGS["gptq"], lambda done, _: seen.append(done)
    )
    assert min(seen) == 3 * len(SAMPLES)


@pytest.fixture
def killed_state(model, tmp_path) -> Path:
    """The state of a run that was interrupted in its second layer."""

    def interrupt(done: int, _: int) -> None:
        if done > 3 * len(SAMPLES):
            raise KeyboardInterrupt

    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        quantize_calibrated(
            model, tmp_path / "out", SAMPLES, SETTINGS["gptq"], interrupt, note=notes.append
        )
    folder = state_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [folder]
    (line,) = notes
    assert "1 of 3 layers" in line
    assert str(folder) in line
    return folder


def test_an_interrupt_in_the_first_layer_leaves_nothing(model, tmp_path):
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_calibrated(model, tmp_path / "out", SAMPLES, SETTINGS["gptq"], interrupt)
    assert list(tmp_path.iterdir()) == []


def test_other_settings_do_not_go_on(model, killed_state, tmp_path):
    before = contents(killed_state)
    settings = replace(
        SETTINGS["gptq"], stored=replace(SETTINGS["gptq"].stored, symmetric=False, group_size=16)
    )
    with pytest.raises(InputError) as raised:
        quantize_calibrated(model, tmp_path / "out", SAMPLES + 1, settings)
    assert raised.value.code == "E-CALIB-STATE"
    for text in ("samples: [3, 64] ", "stored.group_size: 32 then, 16 now", "stored.symmetric"):
        assert text in raised.value.message
    assert "method.method" not in raised.value.message
    assert contents(killed_state) == before


def test_restart_begins_anew(model, killed_state, whole, tmp_path):
    settings = replace(SETTINGS["gptq"], stored=replace(SETTINGS["gptq"].stored, group_size=16))
    with pytest.raises(InputError):
        quantize_calibrated(model, tmp_path / "out", SAMPLES, settings)
    seen: list[int] = []
    quantize_calibrated(
        model,
        tmp_path / "out",
        SAMPLES,
        SETTINGS["gptq"],
        lambda done, _: seen.append(done),
        restart=True,
    )
    assert min(seen) == 0
    assert contents(tmp_path / "out") == whole("gptq")
    assert not killed_state.exists()


def test_the_fingerprint_changes_with_the_model(model, tmp_path):
    model = copy_model(model, tmp_path / "model")
    before = run_fingerprint(open_dense(model), SAMPLES, SETTINGS["gptq"])
    os.utime(model / "model.safetensors", ns=(1, 1))
    after = run_fingerprint(open_dense(model), SAMPLES, SETTINGS["gptq"])
    assert {name for name in before if before[name] != after[name]} == {"model"}


def test_two_processes_do_not_make_the_same_folder(model, killed_state, tmp_path):
    fingerprint = json.loads((killed_state / "fingerprint.json").read_text())
    holder = CalibrationState(tmp_path / "out", fingerprint)
    try:
        with pytest.raises(InputError) as raised:
            quantize_calibrated(model, tmp_path / "out", SAMPLES, SETTINGS["gptq"])
    finally:
        holder.close()
    assert raised.value.code == "E-OUT-BUSY"


def test_a_full_disk_is_an_error_and_the_run_can_go_on(model, whole, tmp_path, monkeypatch):
    allocate, calls = os.posix_fallocate, []

    def full(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError) as raised:
        quantize_calibrated(model, tmp_path / "out", SAMPLES, SETTINGS["gptq"])
    assert raised.value.code == "E-OUT-WRITE"
    assert "No space left" in raised.value.message
    assert [path.name for path in tmp_path.iterdir()] == [".out.calibration"]
    quantize_calibrated(model, tmp_path / "out", SAMPLES, SETTINGS["gptq"])
    assert contents(tmp_path / "out") == whole("gptq")


def test_a_run_goes_on_after_it_lost_a_rank(model, whole, tmp_path):
    launcher, notes = LocalLauncher(), []

    def kill(done: int, _: int) -> None:
        if done == 3 * len(SAMPLES) + 1:
            os.kill(launcher.pids()[1], signal.SIGKILL)

    with pytest.raises(RankFault, match=r"E-RANK-DIED .*rank 1 was killed by signal 9"):
        quantize_calibrated(
            model,
            tmp_path / "out",
            SAMPLES,
            SETTINGS["gptq"],
            kill,
            degree=2,
            launcher=launcher,
            note=notes.append,
        )
    assert "after 1 of 3 layers" in notes[0]
    quantize_calibrated(model, tmp_path / "out", SAMPLES, SETTINGS["gptq"])
    assert contents(tmp_path / "out") == whole("gptq")


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_a_model_that_cannot_be_quantized_leaves_nothing(model, tmp_path, name):
    model = copy_model(model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[name].view(-1)[7] = float("nan")
    save_tensors(model, tensors)
    with pytest.raises(InputError) as raised:
        quantize_calibrated(model, tmp_path / "out", SAMPLES, SETTINGS["gptq"])
    assert raised.value.code == "E-CKPT-NAN"
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    ("degree", "method"),
    [(2, "gptq-mixed"), (3, "awq")],
)
def test_every_degree_writes_the_same_bytes(model, whole, tmp_path, degree, method):
    out = tmp_path / "out"
    quantize_calibrated(
        model, out, SAMPLES, SETTINGS[method], degree=degree, launcher=LocalLauncher()
    )
    assert contents(out) == whole(method)


def covered(tensors: list[torch.Tensor]) -> int:
    """Bytes that lie within at least one of the tensors: many share a storage, or parts of one."""
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.is_contiguous())
    total = reached = 0
    for begin, end in spans:
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def test_memory_does_not_grow_with_the_layers(model, tmp_path):
    """Tensors alive, by what they cover, at the same sample of every layer; cycles are not
    collected."""
    at_layer: dict[int, int] = {}
    runners: set[int] = set()

    def look(done: int, _: int) -> None:
        layer, step = divmod(done, 3 * len(SAMPLES))
        if step == 2:
            objects = gc.get_objects()
            runners.add(sum(type(each) is LayerRunner for each in objects))
            unused = memory._regions._free
            at_layer[layer] = covered(
                [one for one in objects if type(one) is torch.Tensor and one is not unused]
            )

    gc.collect()
    gc.disable()
    try:
        quantize_calibrated(model, tmp_path / "out", SAMPLES, SETTINGS["gptq"], look)
    finally:
        gc.enable()
    assert runners == {1}
    assert len(at_layer) == LAYERS
    # Everything that a layer brings is more than 1 MB; Python may keep a few small ones.
    assert max(at_layer.values()) - min(at_layer.values()) < 100_000
