"""What is suggested after a loss: only what was not tried, in options that go together."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from isobit.launch.cli.quantize.options import (
    Activations,
    CalibrationRun,
    Format,
    Method,
    QuantizeOptions,
    Scheme,
)
from isobit.launch.evaluation.advice import Made, suggestions, worst_module

RUN = CalibrationRun(degree=1, launcher=None, ray_address=None, restart=False)
MODULES = {f"model.layers.{n}.mlp.up_proj": {"bits": 4, "sqnr_db": 20.0 - n} for n in range(30)}


def options(**given) -> QuantizeOptions:
    values = dict.fromkeys((field.name for field in fields(QuantizeOptions)), None)
    values |= {"method": Method.ABSMAX, "keep": (), "text": (), "desc_act": False, "mse": False}
    values["format"] = Format.COMPRESSED_TENSORS
    return QuantizeOptions(**{**values, "run": RUN, **given})


def suggested(given: QuantizeOptions, **more) -> dict[str, dict]:
    stored = given.stored()
    values = {
        "method": given.method.value,
        "scheme": given.made.value,
        "format": given.format.value,
        "group_size": stored.group_size,
        "mixed": bool(given.keep) or given.budget is not None,
        "has_text": bool(given.text),
        "divisors": (128, 64, 32),
        "modules": MODULES,
    }
    found = suggestions(Made(**{**values, **more}))
    assert len({each.name for each in found}) == len(found)
    return {each.name: dict(each.changes) for each in found}


TEXT = (Path("a.txt"),)
STARTS = {
    "absmax": options(),
    "absmax mse asymmetric": options(mse=True, symmetric=False),
    "absmax budget": options(budget=5.0, text=TEXT, samples=3),
    "absmax w8a8": options(scheme=Scheme.W8A8),
    "gptq": options(method=Method.GPTQ, text=TEXT, desc_act=True, damp_percent=0.1, mse=True),
    "gptq w8a8 static": options(
        method=Method.GPTQ,
        text=TEXT,
        scheme=Scheme.W8A8,
        activations=Activations.STATIC,
        damp_percent=0.1,
    ),
    "awq": options(method=Method.AWQ, text=TEXT, group_size=64),
    "awq folder": options(format=Format.AWQ),
    "gptq folder": options(format=Format.GPTQ),
    "awq+gptq": options(method=Method.AWQ_GPTQ, text=TEXT, group_size=32, keep=("*=8",)),
    "smoothquant": options(method=Method.SMOOTHQUANT, text=TEXT),
}


@pytest.mark.parametrize("start", STARTS)
def test_options_that_go_together(start):
    given = STARTS[start]
    for changes in suggested(given).values():
        values = {field.name: getattr(given, field.name) for field in fields(given)} | changes
        if "out_format" in values:
            values["format"] = Format(values.pop("out_format") or "compressed-tensors")
        values["method"] = Method(values["method"])
        values["scheme"] = values["scheme"] and Scheme(values["scheme"])
        values |= {name: tuple(values[name] or ()) for name in ("keep", "text")}
        QuantizeOptions(**values).stored()


@pytest.mark.parametrize(
    ("start", "names"),
    [
        ("absmax", ["gptq", "awq", "g64", "mixed", "int8"]),
        ("absmax budget", ["gptq", "awq", "g64", "int8"]),
        ("absmax w8a8", ["smoothquant", "int8"]),
        ("gptq", ["awq-gptq", "g64", "mixed", "int8"]),
        ("awq", ["awq-gptq", "g32", "mixed", "int8"]),
        ("awq+gptq", ["int8"]),
        ("smoothquant", ["int8"]),
    ],
)
def test_what_was_tried_is_not_suggested(start, names):
    assert list(suggested(STARTS[start])) == names


def test_what_a_format_of_4_bits_cannot_store_goes_into_another():
    changes = suggested(options(format=Format.AWQ))
    assert {name for name, each in changes.items() if "out_format" in each} == {"mixed", "int8"}


def test_zero_points_that_gptq_v1_lacks_go_into_v2():
    changes = suggested(options(format=Format.GPTQ))
    assert {name: each.get("out_format") for name, each in changes.items()} == {
        **dict.fromkeys(changes, None),
        "awq": "gptq_v2",
    }
    again = suggested(options(format=Format.GPTQ, method=Method.GPTQ, text=TEXT))
    assert again["awq-gptq"]["out_format"] == "gptq_v2"


def test_group_sizes_that_divide():
    assert "g64" not in suggested(STARTS["absmax"], divisors=(128,))
    assert suggested(STARTS["absmax"], divisors=(32,))["g32"]["group_size"] == 32
    assert suggested(STARTS["smoothquant"], divisors=())["int8"]["group_size"] == -1


def test_text_is_asked_for_once():
    assert suggested(STARTS["absmax"])["gptq"]["text"] == ["TEXT.txt"]
    assert "text" not in suggested(STARTS["gptq"])["awq-gptq"]


def test_the_module_of_greatest_error():
    assert worst_module(MODULES) == ("model.layers.29.mlp.up_proj", "-9.0 dB of signal to noise")
    by_output = {name: {**m, "layer_error": m["sqnr_db"] / 100} for name, m in MODULES.items()}
    assert worst_module(by_output) == ("model.layers.0.mlp.up_proj", "20.00% of its output")
    exact = {"a": {"bits": 4, "sqnr_db": None}, "b": {"bits": 4, "sqnr_db": 80.0}}
    assert worst_module(exact)[0] == "b"
