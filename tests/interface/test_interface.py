"""Flags and error codes are an interface: scripts of others rely on them."""

from __future__ import annotations

import json

from .commands import RECORD, codes, differences, flags

RECORDED = json.loads(RECORD.read_text())


def test_flags_are_those_on_record() -> None:
    assert differences(RECORDED["flags"], flags()) == []


def test_error_codes_are_those_on_record() -> None:
    assert differences(RECORDED["codes"], codes()) == []
