"""`isobit plan` as people and programs run it: what it shows, what it decides, how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..command import command
from ..sparse_folder import write_sparse_folder
from ..support import DENSE, INT4, copy_model
from ..unit.configs import QWEN_14B, config, pack_quantized

__all__ = ["command"]

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
    "hidden_act": "silu",
}
GPTQ = QWEN_14B["quantization_config"]


@pytest.fixture
def folder(tmp_path):
    """Make a folder that holds nothing but a config.json."""

    def make(contents):
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(contents))
        return model

    return make


def test_json_keeps_its_fields_and_adds_to_them(command):
    report = command("plan", INT4, "-tp", "3", "--gpu-memory", "1", "--json").json()
    assert set(report) == {
        *("tp", "atoms", "layout", "dims", "hash"),
        *("memory", "rotary", "fit", "degrees", "layouts", "wire"),
    }
    ranks = report["memory"]["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1, 2]
    for rank in ranks:
        names = ("codes", "scales", "tables", "dense", "embeddings", "replicated")
        assert rank["weights"] == sum(rank[name] for name in names)
        assert rank["kv"] == rank["kv_per_token"] * 1024
        assert rank["total"] == sum(rank[name] for name in ("weights", "kv", "rotary", "step"))
    assert report["fit"]["fits"] is True
    assert report["fit"]["context"] == 1024
    assert [degree["tp"] for degree in report["degrees"]] == list(range(1, 9))
    chosen = report["degrees"][2]
    assert chosen["weights"] == max(rank["weights"] for rank in ranks)
    assert chosen["fit"]["sequences"] == report["fit"]["sequences"]
    assert {each["layout"]: each["intermediate"] for each in report["layouts"]} == {
        "pad": 512,
        "ragged": 416,
    }
    sites = [message["site"] for message in report["wire"]["messages"]]
    assert sites == ["embed_tokens", "o_proj", "down_proj", "lm_head"]
    sent = sum(message["prefill"] for message in report["wire"]["messages"])
    assert sent == report["wire"]["prefill"]["sent"] == report["wire"]["prefill"]["received"]


def test_hosts_are_told_what_they_send_each_other(command):
    """Of 8 atoms host 0 owns 6, so two subtrees; 5 layers sum twice, 288 wide."""
    result = command("plan", str(INT4), "-tp", "3", "--ranks-per-host", "2,1", "--json")
    first, second = result.json()["wire"]["hosts"]
    assert (first["ranks"], first["nodes"]) == ([0, 1], 2)
    assert (second["ranks"], second["nodes"]) == ([2], 1)
    sums = 5 * 2 * 288 * 4
    for host, nodes, ranks in ((first, 2, 2), (second, 1, 1)):
        embedding, logits = 288 * 2 * ranks, 768 * 4 * ranks
        assert host["decode"]["sent"] == nodes * sums + embedding + logits


@pytest.mark.parametrize("hosts", ["2,2", "3,0", "two"])
def test_hosts_that_do_not_hold_the_ranks_are_an_error(command, hosts):
    result = command("plan", str(INT4), "-tp", "3", "--ranks-per-host", hosts)
    assert result.status == 2 and "E-PLAN-HOSTS" in result.stderr


def test_config_alone_says_what_the_weights_say(command, tmp_path):
    model = copy_model(INT4, tmp_path / "model")
    with_weights = command("plan", model, "-tp", "2", "--json").json()
    (model / "model.safetensors").unlink()
    assert command("plan", model, "-tp", "2", "--json").json() == with_weights


def test_assumed_quantization_is_that_of_the_real_one(command):
    assumed = ("--quantization", "int4", "--group-size", "32")
    dense = command("plan", DENSE, "-tp", "2", *assumed, "--json").json()
    assert dense == command("plan", INT4, "-tp", "2", "--json").json()


@pytest.mark.parametrize("extra", [(), ("--explain",), ("--gpu-memory", "24", "--explain")])
@pytest.mark.parametrize("layout", ["pad", "ragged"])
def test_tables_fit_into_80_columns(command, folder, monkeypatch, extra, layout):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = command("plan", folder(QWEN_14B), "-tp", "3", "--layout", layout, *extra)
    assert outcome.status == 0
    assert outcome.stderr == ""
    assert "…" not in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    for shown in ("13696", "fullest rank at every tp", "KV heads"):
        assert shown in outcome.stdout
    for shown in ("both layouts", "down_proj nodes", "2 layers e H"):
        assert (shown in outcome.stdout) == ("--explain" in extra)


def test_what_fits_ends_with_status_0(command, folder):
    outcome = command("plan", folder(QWEN_14B), "-tp", "2", "--gpu-memory", "24")
    assert outcome.status == 0
    assert "fits in 0.9 of 24 GiB per rank" in " ".join(outcome.stdout.split())


def test_what_does_not_fit_ends_with_status_1_and_its_ways_out_do(command, folder):
    model = folder({**LLAMA_70B, "quantization_config": GPTQ})
    args = ("plan", model, "--gpu-memory", "24")
    outcome = command(*args, "-tp", "1")
    text = " ".join(outcome.stdout.split())
    assert outcome.status == 1
    assert "does not fit: rank 0 lacks" in text
    assert "-tp 2: " in text
    report = command(*args, "-tp", "1", "--json").json()
    assert report["fit"]["fits"] is False
    assert report["fit"]["short_by"] > 0
    for way in report["fit"]["ways_out"]:
        assert command(*args, "-tp", way["tp"], "--layout", way["layout"]).status == 0


def test_a_shorter_context_is_offered(command, folder):
    args = ("plan", folder(QWEN_14B), "--gpu-memory", "24", "-tp", "1")
    outcome = command(*args)
    assert outcome.status == 1
    context = command(*args, "--json").json()["fit"]["context"]
    assert f"--max-model-len {context} fits" in outcome.stdout
    assert command(*args, "--max-model-len", context).status == 0
    assert command(*args, "--max-model-len", context + 64).status == 1


def test_nothing_fits_says_what_comes_closest(command, folder):
    outcome = command("plan", folder(LLAMA_70B), "-tp", "8", "--gpu-memory", "4")
    text = " ".join(outcome.stdout.split())
    assert outcome.status == 1
    assert "No tp up to 8 fits in either layout; tp 8" in text


def test_uneven_devices_bind_where_they_are_small(command, folder):
    model = folder(QWEN_14B)
    report = command("plan", model, "-tp", "2", "--gpu-memory", "24,12", "--json").json()
    assert (report["fit"]["fits"], report["fit"]["rank"]) == (False, 1)
    assert report["degrees"][0]["fit"] is not None
    assert report["degrees"][2]["fit"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (("-tp", "9"), "E-PLAN-DEGREE", "--atoms 16"),
        (("--gpu-memory", "24GB"), "E-PLAN-MEMORY", "24,24,12"),
        (("--gpu-memory", "0"), "E-PLAN-MEMORY", "24,24,12"),
        (("-tp", "3", "--gpu-memory", "24,24"), "E-PLAN-MEMORY", "3 values"),
        (("--gpu-memory", "24", "--gpu-memory-utilization", "1.5"), "E-PLAN-MEMORY", "1.5"),
        (("--max-model-len", "1025"), "E-PLAN-LENGTH", "1024"),
        (("--dtype", "int3"), "E-DTYPE", "float16"),
        (("--quantization", "int4"), "E-USAGE", "compressed-tensors"),
    ],
)
def test_wrong_input_ends_with_status_2(command, arguments, code, shown):
    outcome = command("plan", INT4, *arguments, "--json")
    error = outcome.json()["error"]
    assert (outcome.status, error["code"]) == (2, code)
    assert shown in error["message"]


def test_mixed_group_sizes_name_those_that_are_legal(command, folder):
    quantization = pack_quantized(group_size=96)
    groups = quantization["config_groups"]
    groups["other"] = json.loads(json.dumps(groups["group_0"]))
    groups["other"]["weights"]["group_size"] = 128
    groups["group_0"]["targets"] = [r"re:.*layers\.0\..*"]
    model = folder(config(intermediate_size=384, quantization_config=quantization))
    error = command("plan", model, "--json").json()["error"]
    assert error["code"] == "E-PLAN-GROUP"
    assert "96, 128" in error["message"]
    assert "128, 64, 32, 16" in error["message"]


def bytes_read() -> int:
    """What this process has read so far, from whatever file."""
    return int(Path("/proc/self/io").read_text().split()[1])


def header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_of_a_70b_model_only_headers_are_read(command, tmp_path):
    sizes = write_sparse_folder(
        tmp_path / "model", {**LLAMA_70B, "quantization_config": GPTQ}, files=15
    )
    command("plan", tmp_path / "model")  # imports what it needs
    before = bytes_read()
    outcome = command("plan", tmp_path / "model", "--layout", "ragged", "--json")
    headers = sum(header_bytes(path) for path in (tmp_path / "model").glob("*.safetensors"))
    assert outcome.status == 0
    assert bytes_read() - before < 8 * headers + (8 << 20)
    rank = outcome.json()["memory"]["ranks"][0]
    # Every size is a multiple of tiles and groups, so memory holds what the files hold.
    for category, ends in (("codes", "qweight"), ("scales", "scales")):
        stored = sum(size for name, size in sizes.items() if name.endswith(ends))
        assert rank[category] == stored
    norms = sum(size for name, size in sizes.items() if "norm" in name)
    assert rank["replicated"] == 2 * norms  # float16 in the file, float32 in memory
