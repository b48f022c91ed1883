"""What `isobit quantize` says at its end: the numbers of `evaluate`, a page, and what to try."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isobit.launch.evaluation import quantize_evaluation
from isobit.launch.text.calibration_text import calibration_text, usual_samples
from isobit.launch.tokenizer.tokenizer import Tokenizer
from isobit.runtime.evaluation.streamed_scores import score_streamed
from isobit.shard.checkpoint.checkpoint import open_checkpoint

from ...command import command, scratch
from ...support import DENSE, ROOT, copy_model, save_tensors

__all__ = ["command", "scratch"]

pytestmark = pytest.mark.usefixtures("scratch")
CODE = ROOT / "tests" / "text" / "source.txt"
GROUPS = ("--group-size", "32")
NUMBERS = ("perplexity", "reference_perplexity", "kl_mean", "kl_p99", "kl_worst", "top1_agreement")


def report_of(folder: Path) -> dict:
    return json.loads((folder / "quantization_report.json").read_text())


@pytest.fixture
def short_text(tmp_path: Path) -> Path:
    """A text of fewer than eight samples, so that all of its whole pieces are taken."""
    path = tmp_path / "text.py"
    path.write_text(CODE.read_text()[:4000])
    return path


def test_the_numbers_are_those_of_the_engine_bit_for_bit(command, tmp_path, short_text):
    out = tmp_path / "out"
    text = ("--evaluate-text", short_text)
    summary = command("quantize", DENSE, out, *GROUPS, *text, "--json").json()
    found = summary["evaluation"]
    assert found["samples"] < 8
    text = ("--text", short_text, "--length", found["length"], "--samples", found["samples"])
    options = ("--reference", DENSE, *text, "--launcher", "local", "--json")
    expected = command("evaluate", out, *options).json()
    assert {name: found[name] for name in NUMBERS} == {name: expected[name] for name in NUMBERS}
    assert report_of(out)["evaluation"] == found
    assert report_of(out)["made"]["written_bytes"] == summary["written_bytes"]


def test_text_that_calibration_did_not_see(command, tmp_path):
    text = ("--text", CODE, "--length", "64")
    options = ("--method", "gptq", *GROUPS, *text, "--samples", "3", "--json")
    found = command("quantize", DENSE, tmp_path / "out", *options).json()["evaluation"]
    assert (found["samples"], found["length"]) == (8, 64)
    assert "did not see" in found["text"]
    cut = calibration_text(DENSE, [CODE], 3, 64)
    taken = quantize_evaluation.spread(cut.held_out)
    scores, _ = score_streamed(tmp_path / "out", DENSE, taken)
    assert found["positions"] == len(scores.tokens)
    used = {tuple(row) for row in cut.samples.tolist()}
    assert not used & {tuple(row) for row in taken.tolist()}


@pytest.mark.parametrize(
    ("pieces", "taken"), [(0, 0), (1, 1), (2, 1), (7, 6), (8, 7), (80, 70), (146, 128), (900, 128)]
)
def test_an_eighth_of_a_short_text_is_held_out(pieces, taken):
    assert usual_samples(pieces) == taken


def test_all_of_the_text_in_calibration(command, tmp_path):
    path = tmp_path / "text"
    path.write_text("import os\n" * 20)
    text = ("--text", path, "--length", len(Tokenizer(DENSE).encode(path.read_text())))
    outcome = command("quantize", DENSE, tmp_path / "out", "--method", "gptq", *GROUPS, *text)
    assert outcome.status == 0
    assert "own sample text" in outcome.stdout
    assert "calibration used all of its text" in " ".join(outcome.stdout.split())


def test_advice_that_runs(command, tmp_path, short_text):
    options = (*GROUPS, "--evaluate-text", short_text)
    outcome = command("quantize", DENSE, tmp_path / "out", *options)
    assert outcome.status == 0
    assert "much was lost" in outcome.stdout
    evaluation = report_of(tmp_path / "out")["evaluation"]
    assert evaluation["passed"] is False
    names = [shlex.split(each["command"])[3] for each in evaluation["advice"]]
    assert [name.removeprefix(f"{tmp_path}/out-") for name in names] == [
        "gptq",
        "awq",
        "mixed",
        "int8",
    ]
    for each in evaluation["advice"]:
        assert each["command"] in outcome.stdout
    words = shlex.split(evaluation["advice"][2]["command"].replace("TEXT.txt", str(CODE)))
    mixed = command(*words[1:], "--samples", "4", "--length", "64", "--json").json()
    assert mixed["evaluation"]["kl_mean"] < evaluation["kl_mean"]
    assert "mixed precision" not in json.dumps(mixed["evaluation"]["advice"])
    int8 = command(*shlex.split(evaluation["advice"][3]["command"])[1:], "--json").json()
    assert int8["evaluation"]["passed"] is True
    assert "advice" not in int8["evaluation"]


def test_a_page_that_needs_nothing_else(command, tmp_path, short_text):
    out = tmp_path / "a <b> & c"
    model = copy_model(DENSE, tmp_path / "m<i>odel")
    command("quantize", model, out, *GROUPS, "--evaluate-text", short_text)
    page = (out / "quantization_report.html").read_text()
    for outside in ("<script", "http", "src=", "url(", "@import", "<link"):
        assert outside not in page, outside
    assert "<i>" not in page
    assert "m&lt;i&gt;odel" in page
    evaluation = report_of(out)["evaluation"]
    assert f"{evaluation['perplexity']:.4g}" in page
    assert f"{evaluation['kl_mean']:.3g}" in page
    worst = min(report_of(out)["modules"].values(), key=lambda each: each["sqnr_db"])
    assert f"{worst['sqnr_db']:.1f}" in page
    assert page.count("<svg") == 7


def test_no_evaluation(command, tmp_path):
    out = tmp_path / "out"
    summary = command("quantize", DENSE, out, *GROUPS, "--no-evaluate", "--json").json()
    assert summary["evaluation"] is report_of(out)["evaluation"] is None
    assert "Not evaluated" in (out / "quantization_report.html").read_text()
    text = ("--no-evaluate", "--evaluate-text", CODE)
    assert command("quantize", DENSE, tmp_path / "other", *text).status == 2
    assert not (tmp_path / "other").exists()


def test_without_a_tokenizer_or_with_that_of_another_model_it_says_why(command, tmp_path):
    model = copy_model(DENSE, tmp_path / "model")
    for path in model.glob("tokenizer*"):
        path.unlink()
    outcome = command("quantize", model, tmp_path / "out", *GROUPS)
    assert outcome.status == 0
    assert "not evaluated" in outcome.stdout
    assert "tokenizer" in report_of(tmp_path / "out")["evaluation"]["skipped"]
    text = ("--evaluate-text", CODE, "--json")
    refused = command("quantize", model, tmp_path / "other", *GROUPS, *text)
    assert refused.json()["error"]["code"] == "E-TOKENIZER"
    assert not (tmp_path / "other").exists()


def test_evaluation_text_that_is_none_is_refused_before_anything_is_written(command, tmp_path):
    (tmp_path / "empty").write_text(" ")
    text = ("--evaluate-text", tmp_path / "empty", "--json")
    refused = command("quantize", DENSE, tmp_path / "out", *GROUPS, *text)
    assert refused.json()["error"]["code"] == "E-EVAL-TEXT"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_source_whose_logits_are_not_finite(command, tmp_path):
    """The folder is whole and stays: what failed is only the comparison."""
    model = copy_model(DENSE, tmp_path / "model")
    tensors = load_file(DENSE / "model.safetensors")
    tensors["model.norm.weight"].fill_(3e38)
    save_tensors(model, tensors)
    outcome = command("quantize", model, tmp_path / "out", *GROUPS, "--json")
    assert outcome.status == 2
    error = outcome.json()["error"]
    assert error["code"] == "E-EVAL-REFERENCE"
    assert "is whole and stays" in error["message"]
    assert "did not come to its end" in report_of(tmp_path / "out")["evaluation"]["skipped"]
    assert open_checkpoint(tmp_path / "out").entries


def test_an_interrupt_while_evaluating_keeps_the_folder(command, tmp_path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize_evaluation, "score_streamed", interrupt)
    outcome = command("quantize", DENSE, tmp_path / "out", *GROUPS)
    assert outcome.status == 130
    assert "is whole and stays" in outcome.stderr
    command_line = outcome.stderr.split("missing: ")[1].splitlines()[0]
    assert command_line == f"isobit evaluate {tmp_path}/out --reference {DENSE}"
    assert not list((tmp_path / "out").glob(".*"))


def test_a_result_that_is_not_finite_is_a_bad_verdict(command, tmp_path, monkeypatch):
    """The source is fine: whatever a format or a method did to the weights has to show."""

    def broken(out, model, samples, _progress):
        tensors = load_file(out / "model.safetensors")
        tensors["model.norm.weight"].fill_(3e38)
        save_tensors(out, tensors)
        return score_streamed(out, model, samples)

    monkeypatch.setattr(quantize_evaluation, "score_streamed", broken)
    outcome = command("quantize", DENSE, tmp_path / "out", *GROUPS, "--json")
    assert outcome.status == 1
    assert outcome.json()["evaluation"]["not_finite"]["positions"] > 0
    assert "Broken." in (tmp_path / "out" / "quantization_report.html").read_text()


def test_scores_of_a_sample_do_not_depend_on_its_pieces(monkeypatch):
    samples = torch.arange(60).view(2, 30)
    whole = score_streamed(DENSE, DENSE, samples)
    monkeypatch.setattr("isobit.runtime.evaluation.streamed_scores.MOST_LOGITS_BYTES", 7 * 4 * 2000)
    assert score_streamed(DENSE, DENSE, samples) == whole
    assert whole[0].divergences == [0.0] * 58
