"""What users have on the disk is never removed, overwritten or disclosed by what isobit writes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from isobit.errors import InputError
from isobit.runtime.calibration.state import CalibrationState, layer_file, state_folder
from isobit.runtime.trace.folder import new_trace
from isobit.shard.checkpoint.write_file import write_beside
from isobit.shard.checkpoint.writer import FolderWriter

FINGERPRINT = {"model": "m", "samples": "s"}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def theirs(tmp_path) -> Path:
    """A folder of the user's, two levels deep."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one.jpg").write_bytes(b"1")
    (folder / "layer-00000.rest.safetensors").write_bytes(b"2")
    return folder


def refused(out: Path, restart: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        CalibrationState(out, FINGERPRINT, restart)
    assert caught.value.code == "E-CALIB-STATE"
    assert "Nothing was touched" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("kind", ["folder", "link", "file", "fingerprint of another program"])
def test_a_state_folder_that_no_run_made_is_not_touched(tmp_path, theirs, kind, restart):
    out, folder = tmp_path / "out", state_folder(tmp_path / "out")
    before = contents(theirs)
    if kind == "link":
        folder.symlink_to(theirs)
    elif kind == "file":
        folder.write_text("notes")
        assert "no folder" in refused(out, restart)
        assert folder.read_text() == "notes"
        return
    else:
        theirs.rename(folder)
        theirs = folder
        if kind != "folder":
            (folder / "fingerprint.json").write_text('{"finger": 1}')
            before |= {"fingerprint.json": b'{"finger": 1}'}
    refused(out, restart)
    assert contents(theirs) == before


def test_files_beside_those_of_a_run_are_named_and_stay(tmp_path):
    out = tmp_path / "out"
    state = CalibrationState(out, FINGERPRINT)
    (state.folder / "notes.txt").write_text("mine")
    state.close()
    assert "notes.txt" in refused(out, restart=True)
    assert (state.folder / "notes.txt").read_text() == "mine"


def test_at_the_end_of_a_run_the_files_of_others_stay(tmp_path):
    state = CalibrationState(tmp_path / "out", FINGERPRINT)
    (state.folder / layer_file(0, "rest")).write_text("of the run")
    (state.folder / "notes.txt").write_text("mine")
    state.discard()
    assert contents(state.folder) == {"notes.txt": b"mine"}


def test_what_a_run_left_at_any_moment_is_no_obstacle(tmp_path):
    out, folder = tmp_path / "out", state_folder(tmp_path / "out")
    for left in ((), ("fingerprint.json.0123abcd",)):
        folder.mkdir()
        for name in left:
            (folder / name).touch()
        CalibrationState(out, FINGERPRINT).discard()
        assert not folder.exists()
    state = CalibrationState(out, FINGERPRINT)
    for name in (layer_file(3, "q"), f"{layer_file(4, 'q')}.0123abcd", ".out.ab_c1234/part"):
        (state.folder / name).parent.mkdir(exist_ok=True)
        (state.folder / name).touch()
    state.close()
    state = CalibrationState(out, FINGERPRINT, restart=True)
    assert set(contents(folder)) == {"fingerprint.json"}
    assert json.loads((folder / "fingerprint.json").read_text()) == FINGERPRINT
    state.discard()


def test_a_planted_partial_is_not_followed_and_stays(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / ".page.html.partial"
    planted.symlink_to(victim)
    write_beside(tmp_path / "page.html", "page")
    assert victim.read_text() == "precious"
    assert planted.is_symlink()
    assert (tmp_path / "page.html").read_text() == "page"


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_what_is_written_has_the_modes_of_the_umask(tmp_path, umask):
    source = tmp_path / "source"
    source.mkdir()
    secret = tmp_path / "id_rsa"
    secret.write_text("private")
    secret.chmod(0o600)
    (source / "extra.json").symlink_to(secret)
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer.json").chmod(0o666)
    os.mkfifo(source / "pipe.json")
    with FolderWriter(tmp_path / "out", "note") as writer:
        writer.add("a", torch.ones(1))
        writer.finish({}, source)
    write_beside(tmp_path / "page.html", "page")
    with new_trace(tmp_path / "trace") as folder:
        (folder / "index").touch()
    for path in (tmp_path / "out", tmp_path / "trace"):
        assert mode(path) == 0o777 & ~umask
    for name in ("out/model.safetensors", "out/config.json", "out/tokenizer.json", "page.html"):
        assert mode(tmp_path / name) == 0o666 & ~umask, name
    assert mode(tmp_path / "out" / "extra.json") == 0o600
    assert not (tmp_path / "out" / "pipe.json").exists()
