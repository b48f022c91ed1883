"""Wrong input: one message with a code, exit status 2, nothing written, no process left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..command import Command, command, scratch
from ..support import DENSE, INT4, copy_model, isobit, save_tensors

__all__ = ["command", "scratch"]

pytestmark = pytest.mark.usefixtures("scratch")
WEIGHTS = "model.safetensors"
GENERATE = ("--prompt-ids", "1,2,3", "--launcher", "local")


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def refused(command: Command, tmp_path: Path):
    """Run a command that must be refused with a code; returns its message."""

    def run(code: str, *arguments: object) -> str:
        before = contents(tmp_path)
        outcome = command(*arguments, "--json")
        assert outcome.status == 2
        assert list(outcome.json()) == ["error"]
        error = outcome.json()["error"]
        assert set(error) == {"code", "kind", "message"}
        assert error["code"] == code
        assert "Traceback" not in outcome.stderr
        assert contents(tmp_path) == before
        return error["message"]

    return run


@pytest.fixture
def int4(tmp_path) -> Path:
    return copy_model(INT4, tmp_path / "model")


def test_no_folder(refused, tmp_path):
    for command_name in ("plan", "generate", "verify"):
        extra = GENERATE if command_name == "generate" else ()
        message = refused("E-MODEL-MISSING", command_name, tmp_path / "absent", *extra)
        assert str(tmp_path / "absent") in message


def test_no_config(refused, int4):
    (int4 / "config.json").unlink()
    assert "config.json" in refused("E-MODEL-MISSING", "plan", int4)


def test_a_config_that_is_no_json(refused, int4):
    (int4 / "config.json").write_text("{")
    assert "config.json" in refused("E-MODEL-JSON", "plan", int4)


@pytest.mark.parametrize("arguments", [("plan",), ("generate", *GENERATE)], ids=" ".join)
def test_pickled_weights(refused, int4, arguments):
    (int4 / WEIGHTS).rename(int4 / "pytorch_model.bin")
    message = refused("E-CKPT-FORMAT", arguments[0], int4, *arguments[1:])
    assert "pytorch_model.bin" in message


@pytest.mark.parametrize("arguments", [("plan",), ("generate", *GENERATE)], ids=" ".join)
def test_truncated_weights(refused, int4, arguments):
    with (int4 / WEIGHTS).open("r+b") as file:
        file.truncate(1_000_000)
    message = refused("E-CKPT-TRUNCATED", arguments[0], int4, *arguments[1:])
    assert "1000000 bytes" in message


def test_a_header_past_the_end(refused, int4):
    with (int4 / WEIGHTS).open("r+b") as file:
        file.write((1 << 40).to_bytes(8, "little"))
    assert WEIGHTS in refused("E-CKPT-TRUNCATED", "plan", int4)


def test_a_shard_that_the_index_names_is_absent(refused, int4):
    (int4 / WEIGHTS).rename(int4 / "model-00001-of-00002.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"model.norm.weight": names[0], "model.embed_tokens.weight": names[1]}}
    (int4 / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused("E-CKPT-MISSING", "plan", int4)
    assert names[1] in message
    assert names[0] not in message


def test_an_unknown_architecture(refused, tmp_path):
    model = copy_model(INT4, tmp_path / "model", architectures=["MambaForCausalLM"])
    message = refused("E-MODEL-ARCH", "plan", model)
    assert "MambaForCausalLM" in message
    assert "Qwen2ForCausalLM" in message


@pytest.mark.parametrize("degree", [0, -1, 9])
@pytest.mark.parametrize("arguments", [("plan",), ("generate", *GENERATE)], ids=" ".join)
def test_a_degree_that_no_plan_has(refused, arguments, degree):
    message = refused("E-PLAN-DEGREE", arguments[0], INT4, "-tp", degree, *arguments[1:])
    assert f"size {degree} " in message


def test_degrees_to_verify_are_all_checked_before_the_first_runs(refused):
    refused("E-PLAN-DEGREE", "verify", INT4, "--degrees", "1,2,9", "--launcher", "local")
    refused("E-VERIFY-DEGREES", "verify", INT4, "--degrees", "1,two", "--launcher", "local")


@pytest.mark.parametrize("command_name", ["plan", "generate"])
def test_an_edited_intermediate_size(refused, tmp_path, command_name):
    """The size that the tensors have is in the message."""
    model = copy_model(INT4, tmp_path / "model", intermediate_size=14436)
    extra = GENERATE if command_name == "generate" else ()
    message = refused("E-PLAN-GROUP", command_name, model, *extra)
    assert "14436" in message
    assert "The tensors say 416" in message


def test_an_edited_intermediate_size_of_a_dense_model(refused, tmp_path):
    model = copy_model(DENSE, tmp_path / "model", intermediate_size=448)
    message = refused("E-CONFIG-SHAPE", "plan", model)
    assert "intermediate_size: config.json says 448, the tensors say 416" in message


@pytest.mark.parametrize("degree", [1, 2])
def test_nan_in_a_scale(refused, int4, degree):
    """Every rank that reads the scale names it; the message says it once."""
    name = "model.layers.1.mlp.up_proj"
    tensors = load_file(int4 / WEIGHTS)
    tensors[f"{name}.weight_scale"][0, 0] = torch.nan
    save_tensors(int4, tensors)
    message = refused("E-CKPT-NAN", "generate", int4, "-tp", degree, *GENERATE)
    assert message.count(name) == 1


def test_an_output_that_exists(refused, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    message = refused("E-OUT-EXISTS", "quantize", DENSE, out, "--group-size", "32")
    assert str(out) in message


def test_a_quantized_model_cannot_be_quantized_again(refused, tmp_path):
    refused("E-QUANT-TWICE", "quantize", INT4, tmp_path / "out")


def test_a_group_size_that_divides_nothing(refused, tmp_path):
    message = refused("E-QUANT-GROUP", "quantize", DENSE, tmp_path / "out", "--group-size", "128")
    assert "mlp.down_proj: 416" in message


@pytest.mark.parametrize("ids", ["1,x", "", "1,,2", "1 2", "1.5"])
def test_prompt_ids_that_are_no_integers(refused, ids):
    arguments = ("--prompt-ids", ids, "--launcher", "local")
    assert repr(ids) in refused("E-PROMPT", "generate", INT4, *arguments)


@pytest.mark.parametrize("ids", ["1,2000", "1,-1"])
def test_prompt_ids_outside_the_vocabulary(refused, ids):
    arguments = (f"--prompt-ids={ids}", "--launcher", "local")
    assert ids.split(",")[1] in refused("E-PROMPT", "generate", INT4, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-k", "-5"),
        ("--max-tokens", "0"),
        ("--temperature", "nan"),
    ],
    ids=" ".join,
)
def test_sampling_out_of_range(refused, arguments):
    refused("E-SAMPLING", "generate", INT4, *GENERATE, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", INT4, "--frobnicate"),
        ("plan",),
        ("plan", INT4, "-tp", "two"),
        ("plan", INT4, "--layout", "round"),
        ("generate", INT4),
        ("plan", INT4, "--group-size", "7"),
        ("plan", INT4, "--gpu-memory-utilization", "0.5"),
        ("generate", INT4, *GENERATE, "--ray-address", "127.0.0.1:1"),
        ("frobnicate",),
    ],
    ids=lambda arguments: " ".join(map(str, arguments))[:70],
)
def test_the_command_line_itself(refused, arguments):
    refused("E-USAGE", *arguments)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("E-MODEL-MISSING", ("plan", "/no/such/folder")),
        ("E-USAGE", ("plan", "--frobnicate")),
    ],
)
def test_people_get_one_message_on_standard_error(command, code, arguments):
    outcome = command(*arguments)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(f"{code} ")
    assert outcome.stderr.count("E-") == 1
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("E-PLAN-DEGREE", ("plan", str(INT4), "-tp", "0")),
        ("E-USAGE", ("verify", str(INT4), "--frobnicate")),
    ],
)
def test_the_same_from_a_process_of_its_own(code, arguments):
    done = isobit(*arguments, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == code
    assert done.stderr == ""
