"""Charts and tables of pages: what lies where, and what an odd report does to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.errors import InputError
from isobit.launch.pages.charts import BOTTOM, HEIGHT, TOP, Series, axis_for, line_chart
from isobit.launch.pages.module_map import module_maps
from isobit.launch.pages.quantization_page import quantization_page
from isobit.shard.checkpoint.write_file import write_beside

MADE = {
    "model": "m",
    "method": "gptq",
    "scheme": "int4",
    "source_bytes": 100,
    "written_bytes": 25,
}


def module(**numbers) -> dict:
    return {"bits": 4, "sqnr_db": 20.0, "clipped": 0.0, **numbers}


def report(modules: dict, evaluation: dict | None = None) -> dict:
    return {"made": MADE, "settings": {}, "modules": modules, "evaluation": evaluation}


@given(
    st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=30),
    st.booleans(),
)
def test_every_value_lies_within_the_rules(values, logarithmic):
    axis = axis_for([Series(style="first", values=values)], logarithmic, str)
    assert axis is not None
    assert axis.rules == sorted(axis.rules)
    # The next rule may be one rounding of float64 short of a value that it should reach.
    near = 1e-9
    assert axis.rules[0] <= min(values) * (1 + near)
    assert axis.rules[-1] >= max(values) * (1 - near)
    assert 1 <= len(axis.rules) <= 12
    (line,) = line_chart([Series(style="first", values=values)], axis).lines
    heights = [y for _, y in line.points]
    assert all(TOP - near <= y <= HEIGHT - BOTTOM + near for y in heights)
    assert heights[values.index(max(values))] == min(heights)


def test_gaps_break_a_line_and_zeros_have_no_logarithm():
    series = Series(style="first", values=[1.0, 2.0, None, 3.0, 0.0])
    axis = axis_for([series], True, str)
    assert axis is not None
    assert [len(line.points) for line in line_chart([series], axis).lines] == [2, 1]
    assert axis_for([Series(style="first", values=[None, 0.0])], True, str) is None


def test_the_worst_is_deepest_and_absent_modules_are_dashes():
    modules = {
        "model.layers.0.self_attn.q_proj": module(layer_error=0.001, nearest_error=0.01),
        "model.layers.2.self_attn.q_proj": module(layer_error=0.1, nearest_error=0.2),
        "model.layers.2.mlp.down_proj": module(layer_error=0.01, nearest_error=0.02, sqnr_db=None),
    }
    error, noise = module_maps(modules)
    assert error["columns"] == ["q", "down"]
    assert [row["name"] for row in error["rows"]] == [0, 2]
    first, last = error["rows"]
    assert first["cells"][1] is None
    shares = [first["cells"][0]["share"], last["cells"][1]["share"], last["cells"][0]["share"]]
    assert shares == pytest.approx([0.0, 0.35, 0.7])
    assert noise["rows"][1]["cells"][1]["text"] == "exact"
    page = quantization_page(report(modules))
    assert page.count("<svg") == 2
    assert page.count('class="none"') == 2


def test_numbers_that_are_not_finite_are_told():
    evaluation = {
        "text": "t",
        "samples": 1,
        "length": 8,
        "rough": True,
        "limits": {"perplexity_increase": 0.05, "kl_mean": 0.05},
        "not_finite": {"positions": 3},
        "failures": ["NaN or infinity in the logits of 3 of 7 rows"],
        "passed": False,
        **dict.fromkeys(
            ("perplexity", "reference_perplexity", "perplexity_increase", "kl_mean", "kl_p99")
        ),
        "top1_agreement": 0.5,
    }
    page = quantization_page(report({"model.layers.0.mlp.up_proj": module()}, evaluation))
    assert "Broken." in page
    assert "numbers are rough" in page
    assert "3 of 7 rows" in page
    lost = {**evaluation, "not_finite": {"positions": 0}}
    assert "past all numbers" in quantization_page(report({}, lost))


def test_a_file_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_beside(path, "old")

    def full(*_arguments, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(InputError, match="No space left") as refused:
        write_beside(path, "new")
    assert refused.value.code == "E-OUT-WRITE"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
