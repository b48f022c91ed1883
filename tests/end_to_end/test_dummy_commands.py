"""`--load-format dummy`: generate and verify from a config.json alone, and what it excludes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..command import command, scratch
from ..support import DENSE, INT4

__all__ = ["command", "scratch"]

pytestmark = pytest.mark.usefixtures("scratch")
DUMMY = ("--load-format", "dummy")
LOCAL = ("--launcher", "local", "--max-tokens", "3")
GROUPS = ("--quantization", "int4", "--group-size", "32")


@pytest.fixture
def config_alone(tmp_path: Path) -> Path:
    """A folder without weights and without a tokenizer."""
    (tmp_path / "config.json").write_bytes((DENSE / "config.json").read_bytes())
    return tmp_path


def test_generate_and_verify_without_weights_or_tokenizer(command, config_alone):
    generate = ("generate", config_alone, *DUMMY, *GROUPS, *LOCAL, "--prompt-ids", "5,6")
    answer = command(*generate, "--ignore-eos", "--json")
    assert answer.status == 0, answer.stderr
    tokens = answer.json()["tokens"]
    assert answer.json()["text"] is None
    shown = command(*generate, "--ignore-eos")
    assert shown.stdout.split() == [str(token) for token in tokens]

    verify = ("verify", config_alone, *DUMMY, *GROUPS, *LOCAL, "--degrees", "1,2", "--json")
    verified = command(*verify, "--prompt-ids", "5,6")
    assert verified.status == 0, verified.stderr
    assert verified.json()["identical"] is True
    assert verified.json()["degrees"]["2"]["tokens"] == tokens


def test_verify_draws_ids_where_none_are_given(command, config_alone):
    arguments = ("verify", config_alone, *DUMMY, *LOCAL, "--degrees", "1,3", "--json")
    first, second = command(*arguments).json(), command(*arguments).json()
    assert first["identical"] is True
    assert first == second
    one = command(*arguments, "--prompt-ids", "1").json()
    assert one["degrees"]["1"]["logits_digest"] != first["degrees"]["1"]["logits_digest"]


def test_an_assumed_quantization_is_what_is_loaded(command, config_alone):
    arguments = ("generate", config_alone, *DUMMY, *LOCAL, "--prompt-ids", "5", "--json")
    digests = {
        command(*arguments, *quantization).json()["logits_digest"]
        for quantization in ((), GROUPS, ("--quantization", "int8", "--group-size", "32"))
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", DENSE, *DUMMY),
        ("generate", DENSE, *DUMMY, "--prompt", "text"),
        ("generate", DENSE, *DUMMY, "--prompt", "text", "--chat"),
        ("generate", DENSE, *DUMMY, "--prompt-ids", "1", "--verify-load"),
        ("generate", DENSE, *DUMMY, "--prompt-ids", "1", "--group-size", "32"),
        ("generate", DENSE, "--prompt-ids", "1", "--quantization", "int4"),
        ("generate", DENSE, "--prompt-ids", "1", "--group-size", "32"),
        ("generate", DENSE, "--prompt-ids", "1", "--load-format", "pickle"),
        ("verify", DENSE, *DUMMY, "--prompt", "text"),
        ("verify", DENSE, *DUMMY, "--verify-load"),
        ("verify", DENSE, "--quantization", "int4"),
        ("verify", DENSE, *DUMMY, "--group-size", "32"),
        ("bench", "throughput", DENSE, "--quantization", "int4"),
        ("bench", "throughput", DENSE, *DUMMY, "--group-size", "32"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word is not DENSE),
)
def test_options_that_would_be_ignored(command, arguments):
    outcome = command(*arguments, "--json")
    assert outcome.status == 2
    assert outcome.json()["error"]["code"] == "E-USAGE"


def test_a_config_that_is_quantized_needs_no_assumption(command):
    arguments = ("generate", INT4, *DUMMY, *LOCAL, "--prompt-ids", "5", "--json")
    assert command(*arguments).status == 0
    refused = command(*arguments, *GROUPS)
    assert refused.status == 2
    assert json.loads(refused.stdout)["error"]["code"] == "E-LOAD-FORMAT"


def test_a_group_size_of_nothing(command, config_alone):
    arguments = ("generate", config_alone, *DUMMY, "--prompt-ids", "5", "--quantization", "int4")
    refused = command(*arguments, "--group-size", "0", "--json")
    assert refused.status == 2
    assert "--group-size 0" in refused.json()["error"]["message"]
