"""Tokens that end an answer, by the file that names them."""

from __future__ import annotations

import json

import pytest

from isobit.shard.model.spec import read_spec
from isobit.shard.model.stop_ids import StopIds

from ..configs import config, spec_of


@pytest.mark.parametrize("stop", [7, [7], [7, 9], None])
def test_stop_ids_are_one_or_many(stop):
    wanted = {7: (7,), None: ()}.get(stop) if not isinstance(stop, list) else tuple(stop)
    assert spec_of(eos_token_id=stop).stop_ids == wanted


@pytest.mark.parametrize("stop", [10**30, -5, 200, [-1, 5]], ids=str)
def test_a_stop_id_outside_the_vocabulary_is_left_out_with_a_warning(stop, caplog):
    """transformers warns, and no token ever equals it."""
    assert spec_of(eos_token_id=stop).stop_ids == ((5,) if isinstance(stop, list) else ())
    assert "is not in the vocabulary, 0 to 199" in caplog.text


def folder_of(path, stop, generation):
    (path / "config.json").write_text(json.dumps(config(eos_token_id=stop)))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return path


@pytest.mark.parametrize(
    ("stop", "generation", "said"),
    [
        (9, [3, 9], False),
        ([3, 9], [9, 3], False),
        (9, 3, True),
        ([3, 9], 9, True),
        (9, None, False),
    ],
    ids=str,
)
def test_files_that_disagree_about_stop_tokens_are_named(tmp_path, stop, generation, said, caplog):
    """Where config.json has one that generation_config.json lacks, transformers goes on."""
    spec = read_spec(folder_of(tmp_path, stop, generation))
    assert 9 in spec.stop_ids
    assert ("stop tokens disagree" in caplog.text) == said


def test_stop_ids_know_where_they_come_from():
    found = StopIds(config=(9,), generation=(3, 5))
    assert found.ids == (3, 5, 9)
    assert found.sources == {"config.json": (9,), "generation_config.json": (3, 5)}
    assert StopIds(config=None).sources == {}


def test_stop_ids_of_generation_config_count_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config(eos_token_id=9)))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 9, 5]}))
    assert read_spec(tmp_path).stop_ids == (3, 5, 9)


def test_a_byte_order_mark_before_generation_config_is_skipped_with_a_warning(tmp_path, caplog):
    folder = folder_of(tmp_path, 9, [9, 3])
    path = folder / "generation_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_spec(folder).stop_ids == (3, 9)
    assert "transformers ignores the whole file" in caplog.text
