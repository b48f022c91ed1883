"""The doctor's page: what a stranger must find on it, and nothing that needs a network."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from isobit.errors import InputError
from isobit.findings import Evidence, Finding
from isobit.launch.cli.doctor.without_torch import report_if_nothing_runs
from isobit.launch.pages.doctor_page import (
    GENERATOR,
    MOST_FINDINGS,
    doctor_page,
    write_page,
)
from isobit.launch.pages.layer_loss import layer_loss
from isobit.launch.pages.layer_map import MORE, MOST_MARKS, layer_map
from isobit.launch.pages.measured_facts import LONGEST, MOST_ROWS, measured_facts
from isobit.launch.pages.module_map import DEEPEST
from isobit.launch.pages.own_page import check_page
from isobit.runtime.doctor.diagnosis import Diagnosis, decisive
from isobit.runtime.doctor.findings import CheckResult, skipped

from ...command import Command, command

__all__ = ["command"]

MADE = "2026-11-22 12:00 UTC"
SITE = "layers.1.mlp.down_proj.in"
CASE = {
    "model": "/models/m<b>bold",
    "reference": None,
    "tp": 2,
    "atoms": 8,
    "layout": "pad",
    "dtype": "float16",
    "all_reduce": "auto",
    "prompts": [[1, 2, 3], [4]],
    "max_tokens": 4,
    "quick": False,
}
SITES = {
    "embed_tokens.out": {"absmax": [0.5, 0.5], "non_finite": [0.0, 0.0], "beyond_fp16": [0, 0]},
    "layers.0.mlp.residual": {"absmax": [40.0, None], "non_finite": [0.0, None]},
    "layers.0.self_attn.o_proj.in": {"absmax": [80.0, 2.0], "non_finite": [0.0, 0.0]},
    SITE: {"absmax": [300.0, 400.0], "non_finite": [0.0, 0.25]},
    "logits": {"absmax": [9.0, 9.0], "non_finite": [0.0, 0.0]},
}
MEMORY = [
    {
        "rank": rank,
        "weights": 3 << 20,
        "padding": 1 << 20,
        "step": 1 << 20,
        "kv_cache": 1 << 19,
        "context": 1024,
    }
    for rank in range(2)
]
HALVES = [
    {"name": "layers.0.self_attn", "layer": 0, "sqnr_db": 20.0, "stream_db": 30.0, "kl": 0.01},
    {"name": "layers.0.mlp", "layer": 0, "sqnr_db": 15.0, "stream_db": 25.0, "kl": 0.1},
    {"name": "layers.1.self_attn", "layer": 1, "sqnr_db": None, "stream_db": None, "kl": 0.0},
    {"name": "layers.1.mlp", "layer": 1, "sqnr_db": 10.0, "stream_db": 20.0, "kl": 0.05},
]
DAMAGE = {"kl": 0.16, "perplexity": 12.0, "reference_perplexity": 10.0, "halves": HALVES}
RUN = {"rounding": 1e-4, "sharding": 0.0, "reduction_order": 0.02}


def fault(**changes) -> Finding:
    known: dict[str, Any] = {
        "check": "numbers",
        "severity": "error",
        "verdict": "numeric-overflow",
        "what": "too large <script>alert(1)</script>",
        "site": SITE,
        "layer": 1,
        "op": "mlp.down_proj",
        "rank": 1,
        "evidence": (
            Evidence(what="absmax", measured=264192.0, threshold=65504.0, source="binary16"),
        ),
        "reason": "it does not fit",
        "remedy": 'run with --dtype bfloat16 "quoted"',
    }
    return Finding(**(known | changes))


def report(*findings: Finding, **measured: dict[str, Any]) -> dict[str, Any]:
    names = ("environment", "checkpoint", "plan", "degrees", "numbers", "reference")
    checks = tuple(
        CheckResult(
            name=name,
            seconds=1.25,
            findings=tuple(f for f in findings if f.check == name),
            measured=measured.get(name, {}),
        )
        for name in names
    )
    return Diagnosis(case=CASE, checks=checks, decisive=decisive(checks)).report()


def healthy() -> dict[str, Any]:
    return report(
        environment={"python": "3.11.7", "gpus": None},
        plan={"layers": 2, "memory": MEMORY},
        numbers={"dtype": "float16", "sites": SITES | {SITE: SITES["logits"]}},
        reference={"quantization": DAMAGE, "run": RUN},
    )


def faulty() -> dict[str, Any]:
    place = {"site": SITE, "ranks": [0, 1], "prompt": 0, "position": 2, "token": 7}
    return report(
        fault(),
        plan={"layers": 2, "memory": MEMORY},
        numbers={"dtype": "float16", "sites": SITES, "first_not_finite": place},
    )


class Reader(HTMLParser):
    """Every tag with its attributes, and the text outside styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.mark.parametrize("made", [healthy, faulty])
def test_it_needs_no_network_and_no_script(made):
    page = doctor_page(made(), MADE)
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in reader.tags}
    attributes = {name for _, held in reader.tags for name in held}
    assert not {"src", "href", "srcset"} & attributes
    assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_verdict_comes_first_with_all_that_it_rests_on():
    text = Reader(doctor_page(faulty(), MADE)).text
    top = text[: text.index("Layers and ranks")]
    for said in ("numeric-overflow", SITE, "rank 1", "264192", "65504", "binary16"):
        assert said in top
    assert 'run with --dtype bfloat16 "quoted"' in top
    assert "high: it does not fit" in top
    assert MADE in text


def test_a_healthy_run_says_so_and_what_it_warns_of():
    warning = fault(severity="warning", verdict="healthy", what="shared memory is short")
    text = Reader(doctor_page(report(warning), MADE)).text
    assert text.index("healthy") < text.index("shared memory is short") < text.index("Checks")
    assert "every check ran and none found a fault" in text


def test_what_comes_from_files_and_errors_is_escaped():
    page = doctor_page(faulty(), MADE)
    assert "<b>bold" not in page
    assert "m<b>bold at tp 2" in Reader(page).text
    assert "<script>alert(1)</script>" in Reader(page).text


def test_bytes_that_are_no_text_do_not_cost_the_page(tmp_path):
    odd = faulty()
    odd["case"] = CASE | {"model": "/models/\udcff"}
    write_page(tmp_path / "page.html", odd, MADE)
    assert "numeric-overflow" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_map_has_magnitudes_what_is_not_finite_and_the_marked_places():
    made = faulty()
    found = layer_map(made, {check["name"]: check["measured"] for check in made["checks"]})
    assert found is not None
    assert [row["name"] for row in found.rows] == ["embedding", "0", "1", "head"]
    _, zero, one, _ = [row["cells"] for row in found.rows]
    assert [cell["text"] for cell in zero] == ["80", "2"]
    assert [cell["text"] for cell in one] == ["300", "not finite"]
    assert one[1]["share"] > one[0]["share"] > zero[0]["share"] > zero[1]["share"]
    assert [cell["marks"] for cell in one] == [["B"], ["A", "B"]]
    assert [letter for letter, _ in found.marks] == ["A", "B"]


def test_a_place_is_marked_once_where_no_magnitude_was_measured():
    apart = {"site": SITE, "part": "atom 3", "rank": 1}
    weight = fault(check="plan", verdict="rank-divergence", site="layers.1.mlp.down_proj")
    found = fault(check="degrees", verdict="rank-divergence", what="degrees part", layer=1, rank=1)
    made = report(weight, found, plan={"layers": 3}, degrees={"first_difference": apart})
    shown = layer_map(made, {check["name"]: check["measured"] for check in made["checks"]})
    assert shown is not None
    assert [row["name"] for row in shown.rows] == ["0", "1", "2"]
    clean, marked = shown.rows[1]["cells"]
    assert (clean["text"], clean["share"], clean["marks"]) == ("–", 0.0, [])
    assert (marked["text"], marked["share"], marked["marks"]) == ("", DEEPEST, ["A", "B"])
    assert "not measured" in shown.note


def test_many_marks_are_counted_and_not_listed():
    faults = [
        fault(check="plan", verdict="shard-fault", what=f"fault {i}", layer=i, site=None, rank=None)
        for i in range(MOST_MARKS + 30)
    ]
    made = report(*faults)
    found = layer_map(made, {})
    assert found is not None
    assert found.marks[-1] == (MORE, "30 more: see the checks")
    assert all(len(cell["marks"]) == 1 for row in found.rows[:-1] for cell in row["cells"])
    assert f"{30 + MOST_MARKS - MOST_FINDINGS} more findings" in doctor_page(made, MADE)


def test_the_split_has_a_column_for_each_part_and_begins_where_bits_part():
    apart = {"site": SITE, "part": "atom 3", "rank": 1}
    found = layer_loss(
        {
            "reference": {"quantization": DAMAGE, "run": RUN},
            "degrees": {"first_difference": apart},
        }
    )
    assert found is not None
    assert [tile["value"] for tile in found.tiles] == ["0.16", "0.0001", "0", "0.02"]
    assert [[cell["text"] for cell in row["cells"]] for row in found.rows] == [
        ["0.01", "0.1", "0", "0"],
        ["0", "0.05", "0", "bits differ"],
    ]
    assert [name for name, _ in found.charts] == ["attention", "MLP"]


def test_what_was_not_measured_is_left_out():
    bare = report(fault(site=None, layer=None))
    text = Reader(doctor_page(bare, MADE)).text
    for title in ("Layers and ranks", "Where the error comes from", "Memory per rank"):
        assert title not in text
    only_run = copy.deepcopy(healthy())
    del only_run["checks"][-1]["measured"]["quantization"]
    text = Reader(doctor_page(only_run, MADE)).text
    assert "rounding 0.0001" in text
    assert "quantized MLP" not in text


def test_a_machine_where_nothing_runs_has_a_page_too(tmp_path, monkeypatch, capsys):
    broken = {"torch": {"error": "no <module> named torch"}, "kernels": {}}
    for module in ("launch.cli.doctor.without_torch", "runtime.doctor.checks.environment"):
        monkeypatch.setattr(f"isobit.{module}.import_probe", lambda: broken)
    path = tmp_path / "page.html"
    assert report_if_nothing_runs(["m", f"--html={path}"], False) == 1
    assert "torch cannot be imported: no <module>" in Reader(path.read_text()).text
    assert report_if_nothing_runs(["m", "--html", str(tmp_path / "no" / "page.html")], True) == 2
    printed = capsys.readouterr()
    assert '"verdict": "environment"' in printed.out
    assert "E-OUT-PARENT" in printed.err


def test_only_an_earlier_page_is_replaced(tmp_path):
    page, other = tmp_path / "page.html", tmp_path / "model.safetensors"
    write_page(page, faulty(), MADE)
    write_page(page, healthy(), MADE)
    assert GENERATOR in page.read_text()
    assert "numeric-overflow" not in page.read_text()
    other.write_text("weights")
    for path, generator in ((other, GENERATOR), (tmp_path, GENERATOR), (page, "isobit gpu check")):
        with pytest.raises(InputError) as refused:
            check_page(path, generator)
        assert refused.value.code == "E-OUT-EXISTS"
    with pytest.raises(InputError) as refused:
        check_page(tmp_path / "no" / "page.html", GENERATOR)
    assert refused.value.code == "E-OUT-PARENT"
    assert sorted(tmp_path.iterdir()) == [other, page]


def test_the_command_refuses_the_name_of_another_file_before_it_runs(
    command: Command, tmp_path, monkeypatch
):
    path = tmp_path / "model.safetensors"
    path.write_text("weights")
    monkeypatch.setattr("isobit.launch.cli.doctor.command._examined", None)
    outcome = command("doctor", tmp_path, "--html", path, "--json")
    assert (outcome.status, outcome.json()["error"]["code"]) == (2, "E-OUT-EXISTS")
    assert path.read_text() == "weights"


def test_a_skipped_check_says_why():
    checks = (CheckResult(name="numbers", seconds=0, findings=(skipped("numbers", "no ranks"),)),)
    made = Diagnosis(case=CASE, checks=checks, decisive=None).report()
    assert "– skipped numbers no ranks" in Reader(doctor_page(made, MADE)).text


def test_measurements_of_any_shape_become_rows():
    rows = measured_facts(
        {
            "a": {"b_c": 1, "d": None},
            "many": list(range(40)),
            "ranks": [{"us": 1.23456789}, {"us": True}],
            "empty": [],
            "long": "x" * 1000,
            "nested": [[1]] * 40,
        }
    )
    held = dict(rows)
    assert (held["a b c"], held["a d"]) == ("1", "none")
    assert held["many"].endswith("… (40)")
    assert (held["ranks 0 us"], held["ranks 1 us"]) == ("1.2346", "yes")
    assert (held["empty"], held["nested"]) == ("none", "40 entries")
    assert len(held["long"]) == LONGEST
    many = measured_facts({str(i): i for i in range(MOST_ROWS + 5)})
    assert len(many) == MOST_ROWS + 1
    assert many[-1][0] == "5 more"
