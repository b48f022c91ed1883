"""Manifests of model folders: what they list, which changes they see, how they are compared."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from isobit.errors import InputError
from isobit.runtime.model_files.compare import HostFiles, differences, refusal
from isobit.runtime.model_files.hashes import SAMPLE_BYTES, quick_hash, whole_hash
from isobit.runtime.model_files.manifest import Manifest, ModelFile, read_manifest

from ...support import INT4

BIG = 3 << 20
"""Large enough for gaps between the samples of a quick hash."""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two indexed shards, a tokenizer, and files that nobody reads."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2"}')
    (model / "tokenizer.json").write_text("{}")
    (model / "chat_template.jinja").write_text("x")
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for number, (tensor, name) in enumerate(names.items()):
        values = torch.arange(BIG, dtype=torch.int64).to(torch.uint8) + number
        save_file({tensor: values}, model / name)
    save_file({"a": torch.zeros(2)}, model / "consolidated.safetensors")
    (model / "README.md").write_text("# model")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    return model


def as_lists(manifest: Manifest) -> list[tuple[str, str]]:
    return [(file.name, file.kind) for file in manifest.files]


def test_a_manifest_lists_what_is_read_and_nothing_else(folder):
    assert as_lists(read_manifest(folder)) == [
        ("chat_template.jinja", "tokenizer"),
        ("config.json", "config"),
        ("model-1.safetensors", "weights"),
        ("model-2.safetensors", "weights"),
        ("model.safetensors.index.json", "config"),
        ("tokenizer.json", "tokenizer"),
    ]


def test_without_weights_there_are_no_shards(folder):
    names = [name for name, _ in as_lists(read_manifest(folder, weights=False))]
    assert names == ["chat_template.jinja", "config.json", "tokenizer.json"]


def test_whole_hashes_are_sha256_of_every_byte(folder):
    manifest = read_manifest(folder, whole=True)
    for file in manifest.files:
        data = (folder / file.name).read_bytes()
        assert (file.size, file.whole) == (len(data), hashlib.sha256(data).hexdigest())


def test_progress_ends_at_all_bytes(folder):
    seen: list[tuple[int, int]] = []
    manifest = read_manifest(folder, whole=True, on_bytes=lambda *both: seen.append(both))
    assert seen[-1] == (manifest.size, manifest.size)
    assert seen == sorted(seen)


@pytest.mark.parametrize("where", [0, 9, BIG // 2 + 8, -1], ids=["length", "header", "mid", "end"])
def test_a_quick_hash_sees_header_and_samples(folder, where):
    path = folder / "model-1.safetensors"
    data = bytearray(path.read_bytes())
    before = quick_hash(path)
    if where == BIG // 2 + 8:
        where = (len(data) - SAMPLE_BYTES) * 7 // 15
    data[where] ^= 1
    path.write_bytes(data)
    assert quick_hash(path) != before


def test_quick_hashes_of_files_smaller_than_a_sample(tmp_path):
    for name, data in {"empty": b"", "short": b"abc", "other": b"abd"}.items():
        (tmp_path / name).write_bytes(data)
    assert len({quick_hash(path) for path in tmp_path.iterdir()}) == 3


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_whole_hash_sees_every_byte(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "file"
    content = bytearray(data.draw(st.binary(min_size=1, max_size=300)))
    path.write_bytes(content)
    before = whole_hash(path)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert whole_hash(path) != before


def test_an_unchanged_file_is_not_hashed_again(tmp_path):
    """Bytes changed under the same inode, size and time show that the kept hash is the answer."""
    path, long_ago = tmp_path / "file", time.time_ns() - 10**11
    path.write_bytes(b"aaaa")
    os.utime(path, ns=(long_ago, long_ago))
    first = whole_hash(path, tmp_path / "cache")
    path.write_bytes(b"bbbb")
    os.utime(path, ns=(long_ago, long_ago))
    assert whole_hash(path, tmp_path / "cache") == first
    os.utime(path, ns=(long_ago, long_ago + 1))
    assert whole_hash(path, tmp_path / "cache") == hashlib.sha256(b"bbbb").hexdigest()


def test_the_hash_of_a_file_just_written_is_not_kept(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"aaaa")
    whole_hash(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError) as raised:
        read_manifest(tmp_path / "nowhere")
    assert raised.value.code == "E-MODEL-MISSING"
    assert str(tmp_path / "nowhere") in raised.value.message


def test_a_broken_index_is_listed_as_it_is(folder):
    (folder / "model.safetensors.index.json").write_text("{")
    names = [name for name, _ in as_lists(read_manifest(folder))]
    assert "model.safetensors.index.json" in names


def file(name: str, content: str = "", kind: str = "weights", whole: str = "") -> ModelFile:
    return ModelFile(name=name, kind=kind, size=len(content), quick=f"quick{content}", whole=whole)


FILES = st.dictionaries(
    st.sampled_from(["a.safetensors", "b.safetensors", "c.safetensors"]), st.text("xy", max_size=2)
)


@given(ours=FILES, hosts=st.lists(FILES, max_size=3))
def test_every_difference_of_every_host_is_named(ours, hosts):
    """Against dictionaries of names and contents."""
    wanted = Manifest(files=tuple(file(n, c) for n, c in sorted(ours.items())))
    seen = [
        HostFiles(
            host=f"box{number}",
            folder="/m",
            manifest=Manifest(files=tuple(file(n, c) for n, c in theirs.items())),
        )
        for number, theirs in enumerate(hosts)
    ]
    expected = {
        (f"box{number}", what, name)
        for number, theirs in enumerate(hosts)
        for what, names in {
            "missing": ours.keys() - theirs.keys(),
            "extra": theirs.keys() - ours.keys(),
            "differs": {n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]},
        }.items()
        for name in names
    }
    found = differences(wanted, seen)
    assert {(each.host, each.what, each.name) for each in found} == expected
    assert len(found) == len(expected)
    error = refusal(wanted, "/m", found, "Way out")
    assert (error is None) == (not expected)
    if error is not None:
        only_missing = all(what == "missing" for _, what, _ in expected)
        assert error.code == ("E-MODEL-MISSING" if only_missing else "E-MODEL-DIFFERS")
        assert all(f"  {host}: {name} " in error.message for host, _, name in expected)


def test_whole_hashes_decide_where_both_sides_have_them():
    one, other = file("a", "x", whole="1"), file("a", "x", whole="2")
    theirs = HostFiles(host="box", folder="/m", manifest=Manifest(files=(other,)))
    assert len(differences(Manifest(files=(one,)), [theirs])) == 1
    assert not differences(Manifest(files=(file("a", "x"),)), [theirs])


def test_a_tokenizer_that_differs_is_no_reason_to_refuse():
    wanted = Manifest(files=(file("tokenizer.json", "x", "tokenizer"),))
    found = differences(wanted, [HostFiles(host="box", folder="/m", manifest=Manifest(files=()))])
    assert len(found) == 1
    assert refusal(wanted, "/m", found, "") is None


def test_a_manifest_survives_the_wire():
    manifest = read_manifest(INT4, whole=True)
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\0"])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(InputError, match="E-WIRE"):
        Manifest.from_dict(Manifest(files=(file(name),)).to_dict())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"files": [{}]},
        {"files": [{**vars(file("a")), "size": -1}]},
        {"files": [{**vars(file("a")), "size": True}]},
        {"files": [{**vars(file("a")), "kind": "x"}]},
        {"files": [vars(file("a")), vars(file("a"))]},
    ],
)
def test_what_is_no_manifest_is_refused(fields):
    with pytest.raises(InputError, match="E-WIRE"):
        Manifest.from_dict(fields)
