"""Ranks on hosts whose folders differ: named, or given the driver's files; over the real link."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from isobit.errors import EnvironmentFault, InputError, IsobitError
from isobit.runtime.model_files import on_host
from isobit.runtime.model_files.settle import settle_files
from isobit.runtime.progress import OnBytes, watched_by
from isobit.runtime.ranks.group import RankGroup
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.model_files import ModelFiles, check_mode
from isobit.runtime.transport.address import Address
from isobit.runtime.transport.ticket import RankTicket
from isobit.runtime.worker import process

from ..support import INT4, copy_model

SHARD = "model.safetensors"


class Boxes(LocalLauncher):
    """Each rank is a thread that plays a host of its own: folders[rank] is MODEL's path there."""

    def __init__(self, downloads: dict[int, Path] | None = None) -> None:
        super().__init__()
        self.downloads, self.asked = downloads or {}, []
        self._threads: list[threading.Thread] = []

    def address(self) -> Address:
        return Address(host="127.0.0.1")

    def launch(self, tickets: list[RankTicket]) -> None:
        for ticket in tickets:
            self._threads.append(threading.Thread(target=self._run, args=(ticket,), daemon=True))
            self._threads[-1].start()

    def _run(self, ticket: RankTicket) -> None:
        def download(name: str, commit: str, files: Sequence[str]) -> Path:
            self.asked.append((ticket.rank, name, commit, sorted(files)))
            if ticket.rank not in self.downloads:
                raise EnvironmentFault("E-MODEL-HUB", f"{name}: no connection")
            return self.downloads[ticket.rank]

        process.run_rank(ticket, download)

    def dead(self) -> dict[int, str]:
        return {}

    def stop(self) -> None:
        for thread in self._threads:
            thread.join(timeout=100)


class Worker:
    """Loads nothing; reports where it would have read from."""

    def __init__(self, kind: str, job: dict) -> None:
        del kind
        self.report = {"model": job["model"]}

    def close(self) -> None:
        pass


@pytest.fixture
def boxes(tmp_path, monkeypatch) -> SimpleNamespace:
    """The driver's model, and settle(mode): the folder that each rank then reads from."""
    driver = copy_model(INT4, tmp_path / "driver")
    folders = {0: driver, 1: tmp_path / "box1", 2: tmp_path / "box2"}
    answer = on_host.answer
    monkeypatch.setattr(
        on_host,
        "answer",
        lambda link, message, rank, download: answer(
            link, {**message, "folder": str(folders[rank])}, rank, download
        ),
    )
    monkeypatch.setattr(process, "_worker", Worker)
    monkeypatch.setenv("ISOBIT_CACHE", str(tmp_path / "cache"))

    def settle(
        mode: ModelFiles,
        launcher: Boxes | None = None,
        model: Path = driver,
        ranks: int = 3,
        weights: bool = True,
    ) -> list[str]:
        group = RankGroup(ranks, launcher or Boxes(), 30)
        try:
            settle_files(group, model, mode, weights=weights)
            group.tell({"kind": "load", "model": str(model), "rendezvous": ""})
            loaded = group.collect("loaded", "loading", 30)
            return [loaded[rank]["model"] for rank in range(ranks)]
        finally:
            group.close()

    return SimpleNamespace(driver=driver, folders=folders, settle=settle, cache=tmp_path / "cache")


def refused(boxes: SimpleNamespace, mode: ModelFiles, *arguments, **named) -> IsobitError:
    with pytest.raises(IsobitError) as raised:
        boxes.settle(mode, *arguments, **named)
    assert raised.value.exit_status == 2
    return raised.value


def test_hosts_with_the_same_files_read_their_own(boxes):
    for rank in (1, 2):
        shutil.copytree(boxes.driver, boxes.folders[rank])
    assert boxes.settle("auto") == [str(boxes.folders[rank]) for rank in range(3)]


def test_missing_and_different_files_are_named_with_their_hosts(boxes):
    copy_model(boxes.driver, boxes.folders[1], rope_theta=5e5)
    (boxes.folders[1] / "generation_config.json").unlink()
    (boxes.folders[1] / "quantize_config.json").write_text("{}")
    shutil.copytree(boxes.driver, boxes.folders[2])
    path = boxes.folders[2] / SHARD
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    error = refused(boxes, "same-path")
    assert error.code == "E-MODEL-DIFFERS"
    lines = error.message.splitlines()
    assert "2 hosts without the 5 files" in lines[0]
    host = "(rank 1): "
    assert [line.partition(host)[2].split()[0] for line in lines if host in line] == [
        "config.json",
        "generation_config.json",
        "quantize_config.json",
    ]
    assert sum("(rank 2): model.safetensors differs: SHA-256" in line for line in lines) == 1
    assert "--model-files head" in lines[-1]


def test_a_folder_that_hosts_lack_is_named_once_for_all_its_ranks(boxes):
    boxes.folders[2] = boxes.folders[1]
    error = refused(boxes, "auto")
    assert error.code == "E-MODEL-MISSING"
    assert error.message.count(f"(ranks 1, 2): {boxes.folders[1]}: no such folder") == 1


def test_a_tokenizer_that_differs_is_only_a_warning(boxes, caplog):
    boxes.folders[2] = boxes.folders[0]
    shutil.copytree(boxes.driver, boxes.folders[1])
    (boxes.folders[1] / "tokenizer.json").unlink()
    boxes.settle("auto")
    [warning] = caplog.messages
    assert "(rank 1): tokenizer.json is missing" in warning


def test_the_driver_sends_its_files_once_to_a_host(boxes):
    """Rank 1's host has another config, rank 2's nothing; they share a cache, as on one host."""
    copy_model(boxes.driver, boxes.folders[1], rope_theta=5e5)
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def watcher(what: str) -> Iterator[OnBytes]:
        yield lambda done, total: seen.append((what, done, total))

    with watched_by(watcher):
        first, *others = boxes.settle("head")
    assert first == str(boxes.driver)
    assert others[0] == others[1]
    assert Path(others[0]).is_relative_to(boxes.cache / "models")
    for path in boxes.driver.iterdir():
        assert (Path(others[0]) / path.name).read_bytes() == path.read_bytes()
    size = sum(path.stat().st_size for path in boxes.driver.iterdir())
    assert [each[1:] for each in seen if "hashing" in each[0]][-1] == (size, size)
    assert [each[1:] for each in seen if "sending" in each[0]][-1] == (size, size)
    seen.clear()
    with watched_by(watcher):
        assert boxes.settle("head")[1:] == others
    assert not [each for each in seen if "sending" in each[0]]


def test_a_host_that_lacks_only_a_tokenizer_is_sent_nothing(boxes):
    shutil.copytree(boxes.driver, boxes.folders[1])
    (boxes.folders[1] / "tokenizer.json").unlink()
    read = boxes.settle("head")
    assert read[1] == str(boxes.folders[1])
    assert Path(read[2]).is_relative_to(boxes.cache)


def test_dummy_weights_need_no_more_than_the_config(boxes):
    for rank in (1, 2):
        boxes.folders[rank].mkdir()
    shutil.copy(boxes.driver / "config.json", boxes.folders[1])
    shutil.copy(boxes.driver / "generation_config.json", boxes.folders[1])
    error = refused(boxes, "same-path", weights=False)
    assert error.code == "E-MODEL-MISSING"
    assert "(rank 1)" not in error.message
    fetched = Path(boxes.settle("head", weights=False)[2])
    assert not (fetched / SHARD).exists()
    assert (fetched / "config.json").read_bytes() == (boxes.driver / "config.json").read_bytes()


def test_a_host_that_cannot_keep_the_files_is_named(boxes):
    boxes.folders[2] = boxes.folders[0]
    boxes.cache.write_text("a file where the folder should be")
    error = refused(boxes, "head")
    assert error.code == "E-MODEL-WRITE"
    assert "(rank 1)" in error.message
    assert "(rank 0)" not in error.message


def snapshot(boxes: SimpleNamespace, cache: Path) -> Path:
    """The driver's model as the hub's library would have put it into `cache`."""
    folder = cache / "models--org--name" / "snapshots" / "c0ffee"
    shutil.copytree(boxes.driver, folder)
    return folder


def test_hosts_download_the_commit_that_the_driver_has(boxes, tmp_path):
    model = boxes.folders[0] = snapshot(boxes, tmp_path / "hub0")
    theirs = {1: snapshot(boxes, tmp_path / "hub1"), 2: snapshot(boxes, tmp_path / "hub2")}
    launcher = Boxes(theirs)
    assert boxes.settle("auto", launcher, model) == [
        str(each) for each in (model, *theirs.values())
    ]
    names = sorted(path.name for path in model.iterdir())
    assert sorted(launcher.asked) == [(rank, "org/name", "c0ffee", names) for rank in (1, 2)]


def test_hosts_that_cannot_download_are_named(boxes, tmp_path):
    model = boxes.folders[0] = snapshot(boxes, tmp_path / "hub0")
    error = refused(boxes, "hub", Boxes({1: model}), model)
    assert error.code == "E-MODEL-HUB"
    assert "(rank 2): org/name: no connection" in error.message
    assert "(rank 1)" not in error.message
    assert "--model-files head" in error.message


def test_a_download_that_is_not_the_drivers_is_refused(boxes, tmp_path):
    model = boxes.folders[0] = snapshot(boxes, tmp_path / "hub0")
    other = copy_model(model, tmp_path / "other", rope_theta=5e5)
    error = refused(boxes, "hub", Boxes({1: other, 2: model}), model)
    assert error.code == "E-MODEL-DIFFERS"
    assert "(rank 1): config.json" in error.message


def test_modes_that_cannot_work_are_refused_before_anything_starts(boxes):
    with pytest.raises(InputError, match="E-MODEL-FILES"):
        check_mode("everywhere", boxes.driver)
    with pytest.raises(InputError, match="E-MODEL-FILES"):
        check_mode("hub", boxes.driver)
