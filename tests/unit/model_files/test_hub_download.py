"""Files of one commit from the hub's cache, without a connection: all of them, or one error."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from isobit.errors import EnvironmentFault
from isobit.launch.models import download_files
from isobit.runtime.settings.model_files import hub_commit

COMMIT = "c0ffee" + "0" * 34
NAMES = ["config.json", "model.safetensors"]


@pytest.fixture
def snapshot(tmp_path, monkeypatch) -> Path:
    """An empty snapshot in the library's cache; the library is offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--org--some-name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_what_the_cache_holds_needs_no_connection(snapshot):
    for name in NAMES:
        (snapshot / name).write_text("x")
    assert download_files("org/some-name", COMMIT, NAMES) == snapshot


def test_a_part_of_the_files_is_not_enough(snapshot):
    (snapshot / NAMES[0]).write_text("x")
    with pytest.raises(EnvironmentFault, match="E-MODEL-HUB") as raised:
        download_files("org/some-name", COMMIT, NAMES)
    assert NAMES[1] in raised.value.message
    assert NAMES[0] not in raised.value.message


def test_another_commit_is_not_taken_instead(snapshot):
    for name in NAMES:
        (snapshot / name).write_text("x")
    other = "f" * 40
    with pytest.raises(EnvironmentFault, match="E-MODEL-HUB") as raised:
        download_files("org/some-name", other, NAMES)
    assert f"org/some-name at commit {other[:12]}" in raised.value.message


def test_id_and_commit_of_a_snapshot(snapshot, tmp_path):
    assert hub_commit(snapshot) == ("org/some-name", COMMIT)
    assert hub_commit(tmp_path / "snapshots" / COMMIT) is None
    assert hub_commit(Path("/")) is None
