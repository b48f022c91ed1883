"""JSON line by line, as people give it."""

from __future__ import annotations

import json

import pytest

from isobit.errors import InputError
from isobit.launch.text.text_files import read_json_lines


def test_a_line_ends_where_json_says(tmp_path):
    said = ["one\u2028two\x85three"]
    file = tmp_path / "turns.jsonl"
    file.write_bytes((json.dumps(said, ensure_ascii=False) + "\r\n\r\n").encode())
    assert read_json_lines(file, "E-EVAL-TURNS", "conversations", list) == [said]


def test_all_wrong_lines_are_named(tmp_path):
    file = tmp_path / "turns.jsonl"
    file.write_text("[" * 100_000 + "\n" + '["fine"]\n{')
    with pytest.raises(InputError) as refused:
        read_json_lines(file, "E-EVAL-TURNS", "conversations", list)
    assert refused.value.code == "E-EVAL-TURNS"
    first, second = refused.value.message.splitlines()
    assert first == f"{file}:1: nested too deeply"
    assert second.startswith(f"{file}:3: ")
