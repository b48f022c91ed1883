"""config.json as a file: there, of a size, and one JSON object."""

from __future__ import annotations

import json

import pytest

from isobit.errors import DamagedError
from isobit.shard.model.spec import read_spec

from ..configs import config

TEXTS = {
    "cut": "{",
    "list": "[1]",
    "text": '"text"',
    "deep": "[" * 100_000,
    "deep-field": '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}",
    "digits": '{"vocab_size": 1' + "0" * 5000 + "}",
    "two-values": '{"vocab_size": 200, "vocab_size": 300}',
    "two-values-inside": '{"rope_scaling": {"factor": 2, "factor": 4}}',
    "latin-1": '{"a": "\xe9"}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_config_that_is_no_json_object(tmp_path, text, error_of):
    (tmp_path / "config.json").write_text(TEXTS[text], encoding="latin-1")
    error = error_of(read_spec, tmp_path)
    assert (type(error), error.code) == (DamagedError, "E-MODEL-JSON")
    assert len(error.message) < 400


def test_a_huge_file_is_no_config(tmp_path, error_of):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    error = error_of(read_spec, tmp_path)
    assert type(error) is DamagedError
    assert "1073741824 bytes" in error.message


def test_a_key_given_twice_with_one_value_is_fine(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config())[:-1] + ', "vocab_size": 200}')
    assert read_spec(tmp_path).vocab_size == 200


def test_no_folder_and_no_config(tmp_path, code_of):
    assert code_of(read_spec, tmp_path / "absent") == "E-MODEL-MISSING"
    assert code_of(read_spec, tmp_path) == "E-MODEL-MISSING"
