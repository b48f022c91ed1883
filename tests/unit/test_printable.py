"""What files name reaches no terminal raw: tables, errors, warnings and pages."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from rich.table import Table
from safetensors.torch import load_file, save_file

from isobit.errors import InputError
from isobit.findings import Finding
from isobit.launch.cli.inspect import print_report
from isobit.launch.cli.main import _Printable
from isobit.launch.cli.output import console, print_error
from isobit.launch.pages.doctor_page import write_page
from isobit.launch.printable import printable
from isobit.runtime.doctor.diagnosis import Diagnosis
from isobit.runtime.doctor.findings import CheckResult
from isobit.shard.inspect import inspect_folder

from ..support import INT4, copy_model

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202emodel\ud800\r"
SHOWN = "\\x1b]0;owned\\x07\\x1b[2J\\u202emodel\\ud800\\x0d"


def test_control_characters_become_codes_and_text_stays():
    assert printable(HOSTILE) == SHOWN
    assert printable("größe 模型 ✓\n\tμ") == "größe 模型 ✓\n\tμ"
    assert printable(SHOWN) == SHOWN


@pytest.mark.parametrize("cell", [False, True])
def test_a_console_prints_codes(capsys, cell):
    table = Table("name")
    table.add_row(HOSTILE)
    console.print(table if cell else HOSTILE, markup=False)
    said = capsys.readouterr().out
    assert "\\x1b]0;owned" in said
    assert "\x1b" not in said


def test_an_error_prints_codes(capsys):
    print_error(InputError("E-CKPT-TENSOR", f"missing: {HOSTILE}"), as_json=False)
    assert "\x1b" not in (said := capsys.readouterr().err)
    assert "\\x1b]0;owned" in said


def test_a_warning_prints_codes():
    record = logging.LogRecord("isobit.shard", logging.WARNING, "", 1, "%s", (HOSTILE,), None)
    assert _Printable("%(message)s").format(record) == SHOWN


def test_a_report_and_a_page_of_a_hostile_tensor(tmp_path: Path, capsys):
    name = "\x1b[31mred\x1b]0;owned\x07"
    folder = copy_model(INT4, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensors["model.norm.weight"].clone()}, folder / "model.safetensors")
    print_report(inspect_folder(folder))
    said = capsys.readouterr().out
    assert "\\x1b[31mred" in said
    assert "\x1b" not in said
    note = Finding(check="checkpoint", severity="note", what=HOSTILE)
    result = CheckResult(name="checkpoint", seconds=0, findings=(note,))
    report = Diagnosis(case={}, checks=(result,), decisive=None).report()
    write_page(tmp_path / "page.html", report, "now")
    assert "\x1b" not in (tmp_path / "page.html").read_text(encoding="utf-8")
