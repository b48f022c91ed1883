"""Fetching a model into a host's cache: once, whole or not at all, gone on with after a kill."""

from __future__ import annotations

import os
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isobit.errors import EnvironmentFault, InputError
from isobit.runtime.model_files import fetch
from isobit.runtime.model_files.fetch import fetch_model, read_piece
from isobit.runtime.model_files.manifest import Manifest, read_manifest

from ...support import INT4, copy_model

PIECE = 1 << 16


class Head:
    """The driver's folder, read in pieces. `begun` notes file number and offset of each reading."""

    def __init__(self, folder: Path, spoil: Callable[[bytes], bytes] = lambda piece: piece) -> None:
        self.folder, self.spoil = folder, spoil
        self.manifest = read_manifest(folder, whole=True)
        self.begun: list[tuple[int, int]] = []

    def pieces(self, number: int, offset: int) -> Iterator[bytes]:
        file = self.manifest.files[number]
        self.begun.append((number, offset))
        for start in range(offset, file.size, PIECE):
            yield self.spoil(read_piece(self.folder / file.name, start, PIECE))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return copy_model(INT4, tmp_path_factory.mktemp("head") / "model")


def weights(manifest: Manifest) -> int:
    return next(n for n, file in enumerate(manifest.files) if file.kind == "weights")


def assert_same(folder: Path, head: Head) -> None:
    names = {file.name for file in head.manifest.files}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert (folder / name).read_bytes() == (head.folder / name).read_bytes()


def test_all_files_arrive_and_are_not_fetched_twice(model, tmp_path):
    head = Head(model)
    folder = fetch_model(head.manifest, tmp_path, head.pieces)
    assert_same(folder, head)
    head.begun.clear()
    assert fetch_model(head.manifest, tmp_path, head.pieces) == folder
    assert head.begun == []


def test_another_content_gets_another_folder(model, tmp_path):
    head = Head(model)
    other = Head(copy_model(model, tmp_path / "other", rope_theta=5e5))
    folders = [fetch_model(each.manifest, tmp_path, each.pieces) for each in (head, other)]
    assert folders[0] != folders[1]
    assert_same(folders[0], head)


@pytest.mark.parametrize(
    "spoil",
    [lambda piece: piece[:-1], lambda piece: piece + b"x", lambda piece: b"\0" + piece[1:]],
    ids=["short", "long", "other"],
)
def test_what_is_not_the_announced_file_is_refused_and_removed(model, tmp_path, spoil):
    head = Head(model, spoil)
    with pytest.raises(InputError, match="E-MODEL-TRANSFER"):
        fetch_model(head.manifest, tmp_path, head.pieces)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_no_more_is_written_than_was_announced(model, tmp_path):
    """A disk is not filled by a stream that does not end."""
    head = Head(model)
    taken = 0

    def endless(number: int, offset: int) -> Iterator[bytes]:
        nonlocal taken
        del number, offset
        for _ in range(1000):
            taken += PIECE
            yield bytes(PIECE)

    with pytest.raises(InputError, match="E-MODEL-TRANSFER"):
        fetch_model(head.manifest, tmp_path, endless)
    assert taken <= head.manifest.files[0].size + PIECE


def test_a_fetched_file_that_was_changed_is_fetched_again(model, tmp_path):
    head = Head(model)
    folder = fetch_model(head.manifest, tmp_path, head.pieces)
    head.begun.clear()
    number = weights(head.manifest)
    path = folder / head.manifest.files[number].name
    path.write_bytes(bytes(8) + path.read_bytes()[8:])
    fetch_model(head.manifest, tmp_path, head.pieces)
    assert head.begun == [(number, 0)]
    assert_same(folder, head)


def killed_in_the_middle(head: Head, cache: Path) -> Path:
    """Kill a process after the third piece of the weights; return its partial file."""
    child = os.fork()
    if not child:
        count = 0

        def spoil(piece: bytes) -> bytes:
            nonlocal count
            count += len(piece) == PIECE
            if count == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return piece

        fetch_model(head.manifest, cache, Head(head.folder, spoil).pieces)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    [partial] = cache.rglob("*.partial")
    return partial


def test_a_killed_fetch_leaves_no_half_file_and_is_gone_on_with(model, tmp_path):
    head = Head(model)
    partial = killed_in_the_middle(head, tmp_path)
    number = weights(head.manifest)
    file = head.manifest.files[number]
    assert not (partial.parent / file.name).exists()
    # What Python had buffered died with the process: any number of bytes, but not all.
    partial.write_bytes((model / file.name).read_bytes()[:PIECE])
    folder = fetch_model(head.manifest, tmp_path, head.pieces)
    assert (number, PIECE) in head.begun
    assert (number, 0) not in head.begun
    assert_same(folder, head)


def test_a_partial_file_with_wrong_bytes_is_begun_again(model, tmp_path):
    head = Head(model)
    partial = killed_in_the_middle(head, tmp_path)
    partial.write_bytes(bytes(PIECE))
    folder = fetch_model(head.manifest, tmp_path, head.pieces)
    number = weights(head.manifest)
    assert [each for each in head.begun if each[0] == number] == [(number, PIECE), (number, 0)]
    assert_same(folder, head)


def test_processes_of_one_host_fetch_once(model, tmp_path):
    """Three at a time; a line in a file for each reading that begins."""
    head, log, cache = Head(model), tmp_path / "log", tmp_path / "cache"

    def noted(number: int, offset: int) -> Iterator[bytes]:
        with log.open("a") as out:
            out.write(f"{number}\n")
        time.sleep(0.02)
        return head.pieces(number, offset)

    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            status = 1
            try:
                fetch_model(head.manifest, cache, noted)
                status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(len(head.manifest.files)))


def test_files_that_do_not_fit_are_refused_before_any_byte(model, tmp_path, monkeypatch):
    head = Head(model)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(EnvironmentFault, match="E-MODEL-DISK") as raised:
        fetch_model(head.manifest, tmp_path, head.pieces)
    assert f"{head.manifest.size} bytes" in raised.value.message
    assert head.begun == []


def test_a_cache_that_cannot_be_written_is_named(model, tmp_path):
    head = Head(model)
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFault, match="E-MODEL-WRITE"):
        fetch_model(head.manifest, tmp_path, head.pieces)
