"""Options that commands share: the same everywhere, repeated prompts, answers as JSON and lines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from isobit.launch.cli.app import make_app

from ..command import command, scratch
from ..support import DENSE, INT4

__all__ = ["command", "scratch"]

pytestmark = pytest.mark.usefixtures("scratch")
START_RANKS = ("generate", "verify", "trace", "evaluate", "doctor", "bench throughput")
OF_ITS_OWN = {("tensor_parallel_size", "verify"), ("tensor_parallel_size", "doctor")}
IDS = ("--prompt-ids", "5,6,7,8,9")


def parameters(name: str) -> dict[str, dict[str, object]]:
    """The options of a command by name: how they are written, and their defaults."""
    found = typer.main.get_command(make_app())
    for word in name.split():
        found = found.commands[word]  # pyright: ignore
    return {
        each.name: {"flags": sorted(each.opts), "default": each.default}
        for each in found.params
        if each.param_type_name == "option"
    }


def test_commands_that_start_ranks_take_the_same_options_with_the_same_defaults():
    expected = parameters("generate")
    shared = set(expected) & set(parameters("bench throughput"))
    assert {"device", "max_model_len", "collective_timeout", "check", "quantization"} <= shared
    for name in START_RANKS:
        found = parameters(name)
        for option in shared - {"degree", "as_json"}:
            assert found[option] == expected[option], (name, option)


def test_every_command_is_called_with_h_and_its_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    app = make_app()
    group = typer.main.get_command(app)
    names = [[name] for name in group.commands]  # pyright: ignore
    for name, each in group.commands.items():  # pyright: ignore
        names += [[name, inner] for inner in getattr(each, "commands", ())]
    for words in names:
        shown = CliRunner().invoke(app, [*words, "-h"])
        assert shown.exit_code == 0, words
        assert max(map(len, shown.stdout.splitlines())) <= 80, words
        assert "…" not in shown.stdout, (words, "an option is cut off")


def test_the_list_of_commands_says_what_each_says_of_itself():
    whole, named = (typer.main.get_command(make_app(word)) for word in (None, ""))
    assert list(whole.commands) == list(named.commands)  # pyright: ignore
    for name, each in whole.commands.items():  # pyright: ignore
        line = named.commands[name].help  # pyright: ignore
        assert each.help.startswith(line), name


def test_the_list_of_commands_is_shown_without_torch():
    script = (
        "import sys; from isobit.launch.cli.app import make_app; make_app('');"
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert shown.stdout == "False\n", shown.stderr


def answered(command, *arguments):
    outcome = command("generate", INT4, "--max-tokens", 6, *arguments)
    assert outcome.status == 0, outcome.stderr
    return outcome


def test_prompts_of_one_run_are_answered_as_each_alone(command):
    sampled = ("--temperature", 0.7, "--seed", 4)
    several = answered(
        command, *IDS, "-p", "import os", "-p", "def read", *sampled, "--json"
    ).json()
    alone = [
        answered(command, *prompt, *sampled, "--json").json()
        for prompt in (IDS, ("-p", "import os"), ("-p", "def read"))
    ]
    assert "tokens" not in several
    assert [each["index"] for each in several["completions"]] == [0, 1, 2]
    for found, one in zip(several["completions"], alone, strict=True):
        for key in ("text", "tokens", "logits_digest", "finish_reason"):
            assert found[key] == one[key] == one["completions"][0][key]


def test_lines_hold_what_the_object_holds(command, tmp_path):
    prompts = ("-p", "import os", "-p", "def read")
    whole = answered(command, *prompts, "--json").json()["completions"]
    to_file = answered(command, *prompts, "--jsonl", tmp_path / "lines")
    lines = (tmp_path / "lines").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole
    for each in whole:
        assert each["prompt"] + each["text"] in to_file.stdout
    to_output = answered(command, *prompts, "--jsonl", "-")
    assert to_output.stdout.splitlines() == lines


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--jsonl", "-", "--json"), "both write to standard output"),
        (("--jsonl", "no-such-folder/file"), "no-such-folder is no folder"),
        (("--jsonl", "."), "a folder"),
        (("--quantization", "int4"), "goes with --load-format dummy"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_starts(command, options, said):
    outcome = command("generate", INT4, *IDS, *options)
    assert outcome.status == 2
    assert "E-USAGE" in outcome.stdout + outcome.stderr
    assert said in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("options", [("--top-p", 0.5), ("--seed", 3), ("--top-k", 7)])
def test_options_of_draws_are_without_effect_at_temperature_0_and_said_to_be(command, options):
    plain = answered(command, *IDS, "--json").json()
    outcome = answered(command, *IDS, "--json", *options)
    assert outcome.json()["logits_digest"] == plain["logits_digest"]
    assert f"warning {options[0]}: without effect at --temperature 0" in outcome.stderr


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        (INT4, "gptq", "--quantization gptq: config.json says compressed-tensors"),
        (INT4, "awq_marlin", "--quantization awq_marlin: config.json says compressed-tensors"),
        (DENSE, "gptq", "--quantization gptq: config.json names no quantization"),
    ],
)
def test_a_method_that_the_config_does_not_name_is_an_error(command, model, name, said):
    outcome = command("generate", model, *IDS, "--quantization", name)
    assert outcome.status == 2
    assert f"E-QUANT-METHOD {said}" in outcome.stderr


def test_the_method_that_the_config_names_is_taken(command):
    plain = answered(command, *IDS, "--json").json()
    named = answered(command, *IDS, "--quantization", "compressed-tensors", "--json").json()
    assert named["logits_digest"] == plain["logits_digest"]


def test_half_is_float16(command):
    half = answered(command, *IDS, "--dtype", "half", "--json").json()
    assert (
        half["logits_digest"]
        == (answered(command, *IDS, "--dtype", "float16", "--json").json()["logits_digest"])
    )


def test_the_doctor_refuses_what_it_would_ignore(command):
    options = ("--load-format", "dummy", "--check", "off", "--verify-load")
    outcome = command("doctor", INT4, *options)
    assert outcome.status == 2
    for option in ("--load-format", "--check", "--verify-load"):
        assert f"{option}: isobit doctor" in outcome.stderr


def test_verify_takes_its_sizes_by_the_old_name_too(command):
    results = [
        command("verify", INT4, *IDS, "--max-tokens", 2, name, "1,3", "--json").json()
        for name in ("--degrees", "-tp", "--tensor-parallel-size")
    ]
    assert [result["degrees"] for result in results] == [results[0]["degrees"]] * 3
