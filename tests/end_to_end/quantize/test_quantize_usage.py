"""`isobit quantize`: methods from the command line, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from ...command import Command, command, scratch
from ...support import DENSE, INT4, ROOT, copy_model

__all__ = ["command", "scratch"]

pytestmark = pytest.mark.usefixtures("scratch")
TEXT = ("--text", ROOT / "docs" / "quantization.md", "--samples", "2", "--length", "64")
GPTQ = ("--method", "gptq", "--group-size", "32")


@pytest.fixture
def refused(command: Command, tmp_path: Path):
    """Run a quantize command that must be refused with a code; returns its message."""

    def run(code: str, *options: object, model: Path = DENSE, out: str = "out") -> str:
        before = sorted(tmp_path.rglob("*"))
        outcome = command("quantize", model, tmp_path / out, *options, "--json")
        assert outcome.status == 2
        error = outcome.json()["error"]
        assert error["code"] == code, error
        assert "Traceback" not in outcome.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return error["message"]

    return run


@pytest.mark.parametrize(
    ("method", "scheme"),
    [
        ("gptq", "int4"),
        ("gptq", "w8a8"),
        ("awq", "int4"),
        ("awq+gptq", "int4"),
        ("smoothquant", "w8a8"),
    ],
)
def test_methods_from_the_command_line(command, tmp_path, method, scheme):
    size = ("--group-size", "32") if scheme == "int4" else ("--scheme", scheme)
    options = ("--method", method, *size, *TEXT, "--no-evaluate", "--json")
    outcome = command("quantize", DENSE, tmp_path / "out", *options)
    assert outcome.status == 0, outcome.stdout
    summary = outcome.json()
    assert (summary["method"], summary["scheme"]) == (method, scheme)
    assert (summary["samples"], summary["length"]) == (2, 64)
    assert 0 < summary["layer_error"]["median"] < 0.02
    assert "indexing errors" not in outcome.stderr


def test_two_ranks_write_what_one_writes(command, tmp_path):
    folders = []
    for degree in ((), ("-tp", "2", "--launcher", "local")):
        folders.append(tmp_path / str(len(degree)))
        outcome = command(
            "quantize", DENSE, folders[-1], *GPTQ, *TEXT, *degree, "--no-evaluate", "--json"
        )
        assert outcome.status == 0, outcome.stdout
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    reports = []
    for files in (one, two):
        # The commands that are suggested name the folder and the ranks of their run.
        del files["quantization_report.html"]
        reports.append(json.loads(files.pop("quantization_report.json")))
    assert one == two
    assert reports[0] == reports[1]


def test_absmax_makes_w8a8_and_zero_points_without_text(command, tmp_path):
    wide = command("quantize", DENSE, tmp_path / "wide", "--scheme", "w8a8", "--json").json()
    assert "layer_error" not in wide
    options = ("--group-size", "32", "--asymmetric", "--json")
    assert command("quantize", DENSE, tmp_path / "zeros", *options).status == 0
    report = json.loads((tmp_path / "zeros" / "quantization_report.json").read_text())
    assert report["settings"]["symmetric"] is False


def test_a_smaller_range_by_search_is_nearer_to_the_weights(command, tmp_path):
    noise = {}
    for mse in ((), ("--mse",)):
        options = ("--group-size", "32", *mse, "--json")
        outcome = command("quantize", DENSE, tmp_path / f"out{len(mse)}", *options)
        noise[mse] = outcome.json()["sqnr_db"]["median"]
    assert noise["--mse",] > noise[()] + 0.3


def test_static_activations_have_a_scale_for_each_product(command, tmp_path):
    options = ("--method", "smoothquant", "--activations", "static", *TEXT, "--json")
    assert command("quantize", DENSE, tmp_path / "out", *options).status == 0
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        scales = [name for name in file.keys() if name.endswith(".input_scale")]  # noqa: SIM118
        assert len(scales) == 5 * 7
        assert all(file.get_tensor(name) > 0 for name in scales)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--method", "gptq"), "--text"),
        (("--method", "awq"), "--text"),
        (("--method", "absmax", *TEXT), "--text"),
        (("--samples", "3"), "--samples"),
        (("--length", "3"), "--length"),
        (("--desc-act",), "--desc-act"),
        (("--damp-percent", "0.1"), "--damp-percent"),
        (("--method", "awq", "--desc-act", *TEXT), "--desc-act"),
        (("--method", "smoothquant", "--damp-percent", "0.1", *TEXT), "--damp-percent"),
        (("--method", "smoothquant", "--scheme", "int4", *TEXT), "--scheme int4"),
        (("--method", "smoothquant", "--group-size", "32", *TEXT), "--group-size"),
        (("--method", "awq", "--scheme", "w8a8", *TEXT), "--scheme w8a8"),
        (("--dataset", "org/texts"), "--dataset"),
        (("-tp", "2"), "--tensor-parallel-size"),
        (("--restart",), "--restart"),
        (("--method", "gptq", *TEXT, "--launcher", "local"), "--launcher"),
        (("--method", "gptq", *TEXT, "--ray-address", "auto"), "--ray-address"),
        (("--method", "gptq", *TEXT, "--dataset", "org/texts"), "--dataset"),
        (("--scheme", "w8a8", "--asymmetric"), "--asymmetric"),
        (("--method", "awq", "--mse", *TEXT), "--mse"),
        (("--method", "smoothquant", "--mse", *TEXT), "--mse"),
        (("--activations", "dynamic"), "--activations"),
        (("--scheme", "w8a8", "--activations", "static"), "--activations static"),
        (("--method", "awq+gptq", "--scheme", "w8a8", *TEXT), "--scheme w8a8"),
        (("--scheme", "w8a8", "--group-size", "32"), "--group-size"),
        (("--budget", "5"), "--text"),
        (("--budget", "5", "--scheme", "int4", *TEXT), "--scheme int4"),
        (("--budget", "8", "--method", "smoothquant", *TEXT), "--budget"),
        (("--budget", "5", "-tp", "2", *TEXT), "one process"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_go_together(refused, options, named):
    assert named in refused("E-USAGE", *options)


def test_a_budget_from_the_command_line(command, tmp_path):
    options = ("--budget", "5", "--group-size", "32", *TEXT, "--json")
    summary = command("quantize", DENSE, tmp_path / "out", *options).json()
    assert summary["scheme"] == "mixed"
    mixed = summary["mixed"]
    assert mixed["budget"] == 5
    assert 4.5 < mixed["average"] <= 5
    assert sum(mixed["products"].values()) == 35
    assert mixed["predicted_kl"] > 0


@pytest.mark.parametrize(
    ("code", "budget", "keep", "named"),
    [
        ("E-QUANT-BUDGET", "4.4", (), "at least 4.5 bits"),
        ("E-QUANT-BUDGET", "nan", (), "at least 4.5 bits"),
        ("E-QUANT-BUDGET", "5", ("*.down_proj=16",), "at least 6.874"),
        ("E-QUANT-BUDGET", "16", (), "dense"),
        ("E-QUANT-PATTERN", "5", ("*.q_proj=8", "layers.2.*.v_proj=4"), "layers.2.self_attn.q_p"),
        ("E-QUANT-PATTERN", "5", ("*=16",), "dense"),
    ],
)
def test_budgets_that_cannot_be(refused, code, budget, keep, named):
    options = [option for pattern in keep for option in ("--keep", pattern)]
    sizes = ("--group-size", "32", *TEXT)
    assert named in refused(code, "--budget", budget, *sizes, *options)


def test_all_options_that_do_not_apply_are_named_at_once(refused):
    message = refused("E-USAGE", "--desc-act", "--samples", "3", "--damp-percent", "0.1")
    assert all(name in message for name in ("--desc-act", "--samples", "--damp-percent"))


@pytest.mark.parametrize("damping", ["0", "-1", "nan", "2"])
def test_a_damping_out_of_range(refused, damping):
    assert "damp_percent" in refused("E-QUANT-SETTING", *GPTQ, *TEXT, "--damp-percent", damping)


@pytest.mark.parametrize("contents", [b"", b" \n\n ", b"\xff\xfe\x00", None], ids=str)
def test_text_that_is_none(refused, tmp_path, contents):
    file = tmp_path / "text"
    if contents is not None:
        file.write_bytes(contents)
    assert str(file) in refused("E-CALIB-TEXT", *GPTQ, "--text", file)


def test_all_files_without_text_are_named_at_once(refused, tmp_path):
    (tmp_path / "empty").touch()
    options = ("--text", tmp_path / "empty", "--text", tmp_path / "absent")
    message = refused("E-CALIB-TEXT", *GPTQ, *options)
    assert all(str(tmp_path / name) in message for name in ("empty", "absent"))


def test_a_dataset_that_is_none(refused):
    assert "ID[@CONFIG]" in refused("E-CALIB-DATASET", *GPTQ, "--dataset", "a/b/c")


def test_a_dataset_without_a_hub(refused, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    message = refused("E-CALIB-DATASET", *GPTQ, "--dataset", "org/texts")
    assert "org/texts@default:train:text: default/train/0000.parquet" in message
    assert "--text FILE" in message


@pytest.mark.parametrize("extra", [(), ("--samples", "1")], ids=str)
def test_text_shorter_than_one_sample(refused, tmp_path, extra):
    (tmp_path / "text").write_text("import os\n")
    message = refused("E-CALIB-TEXT", *GPTQ, "--text", tmp_path / "text", *extra)
    assert "0 samples of 512" in message
    assert message.endswith("--length")


def test_fewer_samples_than_asked_for(refused, tmp_path):
    (tmp_path / "text").write_text("import os\n" * 20)
    options = ("--text", tmp_path / "text", "--samples", "50", "--length", "8")
    assert "50 are wanted" in refused("E-CALIB-TEXT", *GPTQ, *options)


@pytest.mark.parametrize("option", ["--samples", "--length"])
@pytest.mark.parametrize("number", ["0", "-1"])
def test_sizes_of_samples(refused, option, number):
    refused("E-CALIB-LENGTH", *GPTQ, *TEXT[:2], option, number)


def test_samples_longer_than_the_model_reads(refused, tmp_path):
    (tmp_path / "text").write_text("import os\n" * 2000)
    message = refused("E-CALIB-LENGTH", *GPTQ, "--text", tmp_path / "text", "--length", "1025")
    assert "1024 positions" in message


def test_a_tokenizer_of_another_model(refused, tmp_path):
    model = copy_model(DENSE, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: number + 1990 for token, number in vocabulary.items()}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "0..1999" in refused("E-CALIB-IDS", *GPTQ, *TEXT, model=model)


def test_no_tokenizer(refused, tmp_path):
    model = copy_model(DENSE, tmp_path / "model")
    for path in model.glob("tokenizer*"):
        path.unlink()
    message = refused("E-TOKENIZER", *GPTQ, *TEXT, model=model)
    assert "--prompt-ids" not in message


def test_a_group_size_that_divides_nothing(refused):
    options = ("--method", "gptq", "--group-size", "128", *TEXT)
    assert "mlp.down_proj: 416" in refused("E-QUANT-GROUP", *options)


def test_more_ranks_than_atoms(refused):
    refused("E-PLAN-DEGREE", *GPTQ, *TEXT, "-tp", "9", "--launcher", "local")


def test_a_quantized_model(refused):
    refused("E-QUANT-TWICE", *GPTQ, *TEXT, model=INT4)


def test_an_output_that_exists(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    refused("E-OUT-EXISTS", *GPTQ, *TEXT, out="mine")


@pytest.mark.parametrize("pattern", ["layers.9.*=8", "layers.0.*", "layers.0.*=5", "*=16"])
def test_patterns_that_mean_nothing(refused, pattern):
    refused("E-QUANT-PATTERN", *GPTQ, *TEXT, "--keep", pattern)


def test_w8a8_keeps_no_module_at_4_bits(refused):
    refused("E-QUANT-PATTERN", "--scheme", "w8a8", "--keep", "layers.0.*=4")


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("E-QUANT-GROUP", ("--group-size", "128")),
        ("E-QUANT-PATTERN", ("--keep", "layers.9.*=8", "--group-size", "32")),
        ("E-QUANT-FORMAT", ("--format", "gptq", "--asymmetric", "--group-size", "32")),
        ("E-QUANT-FORMAT", ("--format", "awq", "--scheme", "int8", "--group-size", "32")),
        ("E-QUANT-FORMAT", ("--format", "gptq_v2", "--scheme", "w8a8")),
    ],
    ids=str,
)
def test_settings_are_checked_before_the_text_is_read(refused, tmp_path, code, options):
    refused(code, "--method", "gptq", "--text", tmp_path / "absent", *options)


def test_the_source_and_the_place_are_checked_before_the_text_is_read(refused, tmp_path):
    absent = ("--text", tmp_path / "absent")
    refused("E-QUANT-TWICE", *GPTQ, *absent, model=INT4)
    (tmp_path / "mine").mkdir()
    refused("E-OUT-EXISTS", *GPTQ, *absent, out="mine")


def test_a_format_from_the_command_line(command, tmp_path):
    options = ("--format", "gptq_v2", "--group-size", "32", "--json")
    assert command("quantize", DENSE, tmp_path / "out", *options).json()["format"] == "gptq_v2"
    written = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert written["checkpoint_format"] == "gptq_v2"
