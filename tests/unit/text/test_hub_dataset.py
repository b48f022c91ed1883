"""Calibration text from a dataset: a hub on this machine, its cache, and what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from isobit.errors import InputError
from isobit.launch.cli.output import print_error
from isobit.launch.text.calibration_text import calibration_text
from isobit.launch.text.hub_dataset import HubDataset, parse_dataset
from isobit.launch.tokenizer.tokenizer import Tokenizer

from ...support import DENSE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "default/train/0000.parquet": {"text": ["def f(x):\n", "", None, "    return x\n"]},
    "default/train/0001.parquet": {"text": ["import os\n" * 40]},
    "default/partial-long/0000.parquet": {"text": ["long\n"]},
    "code/test/0000.parquet": {"body": ["class A:\n"], "stars": [3]},
}


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as downloading files of org/texts takes."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._file(send=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/datasets/org/texts/tree/refs%2Fconvert%2Fparquet"):
            entries = [{"type": "file", "path": p, "oid": "0", "size": 1} for p in self.files]
            self._answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            self._file(send=True)

    def _file(self, send: bool) -> None:
        begin = "/datasets/org/texts/resolve/refs/convert/parquet/"
        path = unquote(self.path)
        if not path.startswith(begin):
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif (data := self.files.get(name := path.removeprefix(begin))) is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self.asked.append(name)
            named = {"ETag": f'"{abs(hash(data)):x}"', "X-Repo-Commit": COMMIT}
            self._answer(200, data, named, send)

    def _answer(self, status: int, data: bytes, headers: dict[str, str], send: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing on standard error."""


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[list[str]]:
    """A hub that this process asks, with an empty cache: the files that were asked for."""
    contents = {}
    for name, columns in FILES.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        contents[name] = sink.getvalue().to_pybytes()
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"files": contents, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def refused(dataset: HubDataset) -> str:
    with pytest.raises(InputError) as raised:
        list(dataset.texts())
    assert raised.value.code == "E-CALIB-DATASET"
    return raised.value.message


def test_names():
    assert parse_dataset("wikitext") == HubDataset(
        id="wikitext", config="default", split="train", column="text"
    )
    assert parse_dataset("a/b@c-1:test:body text") == HubDataset(
        id="a/b", config="c-1", split="test", column="body text"
    )
    for wrong in ("", "a/b/c", "a b", "a:b:c:d", "a@", "a::c", "../a"):
        with pytest.raises(InputError, match="expected ID"):
            parse_dataset(wrong)


@pytest.mark.usefixtures("hub")
def test_rows_of_all_files_in_order():
    texts = list(parse_dataset("org/texts").texts())
    assert texts == ["def f(x):\n", "    return x\n", "import os\n" * 40]
    assert list(parse_dataset("org/texts:long").texts()) == ["long\n"]
    assert list(parse_dataset("org/texts@code:test:body").texts()) == ["class A:\n"]


def test_samples_fetch_no_more_than_they_need(hub):
    few = calibration_text(DENSE, [], 1, 4, parse_dataset("org/texts")).samples
    tokens = Tokenizer(DENSE).encode("def f(x):\n") + Tokenizer(DENSE).encode("    return x\n")
    assert few[0].tolist() == tokens[:4]
    assert set(hub) == {"default/train/0000.parquet"}
    more = calibration_text(DENSE, [], 8, 8, parse_dataset("org/texts")).samples
    assert more.shape == (8, 8)
    with pytest.raises(InputError, match="100 are wanted"):
        calibration_text(DENSE, [], 100, 512, parse_dataset("org/texts"))


@pytest.mark.usefixtures("hub")
def test_the_cache_serves_without_a_hub(monkeypatch):
    before = list(parse_dataset("org/texts@code:test:body").texts())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = parse_dataset("org/texts@code:test:body").texts()
    assert next(again) == before[0]
    message = refused(parse_dataset("org/texts:train"))
    assert "default/train/0000.parquet is not in the cache" in message
    assert "--text FILE" in message


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["org/texts:nowhere", "org/texts@other"])
def test_what_is_not_there(name):
    message = refused(parse_dataset(name))
    assert "org/texts@code:test, org/texts@default:long, org/texts@default:train" in message


@pytest.mark.usefixtures("hub")
def test_a_column_that_is_not_there_or_holds_no_text():
    for column in ("text", "stars"):
        assert "It has: body" in refused(parse_dataset(f"org/texts@code:test:{column}"))


@pytest.mark.usefixtures("hub")
def test_no_such_dataset():
    assert "the hub did not give it" in refused(parse_dataset("org/nothing"))


@pytest.mark.usefixtures("hub")
def test_a_file_that_is_no_parquet(monkeypatch, tmp_path):
    (tmp_path / "bad").write_bytes(b"PAR1 and no more")
    monkeypatch.setattr(HubDataset, "_fetch", lambda *_: tmp_path / "bad")
    assert "cannot be read" in refused(parse_dataset("org/texts"))


def test_names_of_splits_are_shown_as_they_are(capsys):
    """rich turns :train: into a picture of one unless it is told not to."""
    print_error(InputError("E-CALIB-DATASET", "org/texts@default:train:text"), as_json=False)
    assert "org/texts@default:train:text" in capsys.readouterr().err
