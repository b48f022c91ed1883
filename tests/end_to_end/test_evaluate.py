"""`isobit evaluate`: the numbers against transformers, equal at every degree, gates, bad input."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from isobit.errors import EnvironmentFault, InputError
from isobit.launch.evaluation.evaluation import check_host, check_vocabularies
from isobit.launch.tokenizer.tokenizer import Tokenizer
from isobit.runtime.engine.engine import Engine
from isobit.runtime.evaluation.logits_file import LogitsFile
from isobit.runtime.evaluation.score_samples import check_samples, score
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings
from isobit.shard.model.spec import read_spec

from ..command import command, scratch
from ..support import DENSE, INT4, ROOT, copy_model, save_tensors

__all__ = ["command", "scratch"]

leaves_nothing = pytest.mark.usefixtures("scratch")
TEXT = ROOT / "tests" / "text" / "source.txt"
LENGTH = 150
SMALL = ("--text", TEXT, "--length", LENGTH, "--samples", 3, "--launcher", "local", "--json")
BOTH = (INT4, "--reference", DENSE, *SMALL)

# Both sides run in float32 and logits agree within 2e-5 of the largest one (see test_oracle), about
# 4e-4 absolute, with signs that vary: the mean over 447 positions is far nearer than each of them.
PERPLEXITY_BOUND = 1e-5
# As log-probabilities; a KL divergence is second order in differences of logits.
KL_BOUND = 1e-4


TASKS = [
    {"prompt": "import os\nimport ", "choices": ["sys\n", "qqzx\n"], "answer": 0},
    {"prompt": "def main(self", "choices": ["]]]]", "):\n"], "answer": 1},
    {"prompt": "for i in range(", "choices": ["len(", "zzz"], "answer": 1},
]


def write_tasks(folder: Path, tasks: list) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text("\n".join(map(json.dumps, tasks)))
    return path


@torch.no_grad()
def oracle(model, samples) -> torch.Tensor:
    """Float64 log-softmax of the float32 logits of transformers, [positions, V]."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    logits = [network(torch.tensor([sample])).logits[0, :-1] for sample in samples]
    return torch.log_softmax(torch.cat(logits).double(), dim=-1)


def test_numbers_against_transformers(command):
    result = command("evaluate", *BOTH, "--dtype", "float32").json()
    ids = Tokenizer(INT4).encode(TEXT.read_text())
    samples = [ids[i : i + LENGTH] for i in range(0, 3 * LENGTH, LENGTH)]
    assert (result["samples"], result["positions"]) == (3, 3 * (LENGTH - 1))
    following = torch.tensor([token for sample in samples for token in sample[1:]])[:, None]
    model, reference = oracle(INT4, samples), oracle(DENSE, samples)
    for log_softmax, name in ((model, "perplexity"), (reference, "reference_perplexity")):
        theirs = math.exp(-float(log_softmax.gather(1, following).mean()))
        assert result[name] == pytest.approx(theirs, rel=PERPLEXITY_BOUND), name
    increase = result["perplexity"] / result["reference_perplexity"] - 1
    assert result["perplexity_increase"] == pytest.approx(increase)
    divergences = (reference.exp() * (reference - model)).sum(-1)
    assert result["kl_mean"] == pytest.approx(float(divergences.mean()), rel=KL_BOUND)
    assert result["kl_p99"] == pytest.approx(float(divergences.quantile(0.99)), rel=KL_BOUND)
    sample, position = divmod(int(divergences.argmax()), LENGTH - 1)
    worst = result["kl_worst"]
    assert (worst["sample"], worst["position"]) == (sample, position)
    assert worst["token"] == samples[sample][position]
    agreement = (model.argmax(-1) == reference.argmax(-1)).double().mean()
    assert result["top1_agreement"] == pytest.approx(float(agreement), abs=1.5 / len(following))


@leaves_nothing
def test_every_number_is_equal_at_every_degree(command, tmp_path):
    more = ("--tasks", write_tasks(tmp_path, TASKS), "--stress")
    one, two = (command("evaluate", *BOTH, *more, "-tp", degree).json() for degree in (1, 2))
    assert {**one, "tp": 2} == two
    assert one["passed"] is None
    assert one["perplexity"] > one["reference_perplexity"]
    assert one["tasks"]["count"] == len(TASKS)
    for name in ("model", "reference"):
        assert one["stress"][name]["error"] is None
        assert one["stress"][name]["tokens"] == 1024 - 32


def test_pieces_and_batches_change_no_bit():
    ids = Tokenizer(INT4).encode(TEXT.read_text())
    samples = [ids[:90], ids[90:150], ids[150:152]]
    found = []
    for rows, pages in ((512, 64), (37, 64), (512, 2)):
        settings = EngineSettings(max_step_rows=rows, kv_pages=pages)
        with Engine(INT4, settings, LocalLauncher()) as engine:
            found.append(score(engine, samples))
    assert found[0] == found[1] == found[2]


@leaves_nothing
def test_a_model_beside_itself(command):
    result = command(
        "evaluate", INT4, "--reference", INT4, *SMALL, "--max-kl", 0, "--max-perplexity-increase", 0
    )
    report = result.json()
    assert result.status == 0
    assert report["passed"] is True
    assert (report["kl_worst"]["value"], report["perplexity_increase"]) == (0.0, 0.0)
    assert report["top1_agreement"] == 1.0
    assert report["first_divergence"] == [None] * 3


def test_choices_by_the_likelihoods_of_transformers(command, tmp_path):
    result = command("evaluate", DENSE, *SMALL, "--tasks", write_tasks(tmp_path, TASKS)).json()
    text, right = Tokenizer(DENSE), 0
    for task in TASKS:
        likelihoods = []
        for choice in task["choices"]:
            # What the choices of a task share adds the same to each.
            ids = text.encode(task["prompt"] + choice)
            following = torch.tensor(ids[1:])[:, None]
            likelihoods.append(float(oracle(DENSE, [ids]).gather(1, following).sum()))
        right += likelihoods.index(max(likelihoods)) == task["answer"]
    assert result["tasks"] == {
        "count": 3,
        "accuracy": pytest.approx(right / 3),
        "reference_accuracy": None,
    }


@leaves_nothing
def test_tasks_that_are_none(command, tmp_path):
    wrong = [{"prompt": "a"}, {**TASKS[0], "answer": 2}, {**TASKS[0], "choices": ["x"]}, TASKS[1]]
    tasks = write_tasks(tmp_path, wrong)
    message = refusal(command, "E-EVAL-TASKS", INT4, "--text", TEXT, "--tasks", tasks)
    assert [line.split(":")[1] for line in message.splitlines()] == ["1", "2", "3"]
    tasks = write_tasks(tmp_path, [{**TASKS[1], "choices": ["", "x"]}, {**TASKS[0], "prompt": ""}])
    message = refusal(command, "E-EVAL-TASKS", INT4, "--text", TEXT, "--tasks", tasks)
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "task 0, choice 0",
        "task 1",
    ]


@leaves_nothing
def test_a_gate_that_is_not_passed(command):
    outcome = command("evaluate", *BOTH, "--max-kl", "0.001", "--max-perplexity-increase", "0.9")
    assert outcome.status == 1
    assert outcome.json()["passed"] is False
    (failure,) = outcome.json()["failures"]
    assert failure.startswith("kl_mean")


@leaves_nothing
def test_ray_gives_the_same_numbers(command):
    by_ray = command("evaluate", *BOTH[:-3], "--json")
    assert by_ray.status == 0, by_ray.stderr
    assert by_ray.json() == command("evaluate", *BOTH).json()


@leaves_nothing
def test_people_get_a_table(command):
    outcome = command("evaluate", INT4, *SMALL[:-1])
    assert outcome.status == 0
    assert "perplexity" in outcome.stdout
    assert "KL" not in outcome.stdout
    assert outcome.stderr == ""


def refusal(command, code, *arguments) -> str:
    outcome = command("evaluate", *arguments, "--launcher", "local", "--json")
    assert outcome.status == 2
    assert outcome.json()["error"]["code"] == code
    return outcome.json()["error"]["message"]


@leaves_nothing
def test_all_that_is_wrong_with_the_options(command):
    message = refusal(
        command, "E-USAGE", INT4, "--max-kl", "-1", "--max-perplexity-increase", "1", "--samples", 0
    )
    for part in ("--samples 0", "--max-kl needs", "--max-kl -1", "increase needs"):
        assert part in message
    assert "1024" in refusal(command, "E-USAGE", INT4, "--text", TEXT, "--length", "1025")


@leaves_nothing
def test_text_that_cannot_be_scored(command, tmp_path):
    empty, binary, short = (tmp_path / name for name in ("empty", "binary", "short"))
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00")
    short.write_text("a")
    texts = [("--text", path) for path in (empty, binary, tmp_path / "absent")]
    message = refusal(command, "E-EVAL-TEXT", INT4, *(part for pair in texts for part in pair))
    assert all(name in message for name in ("empty", "binary", "absent"))
    assert "1 tokens" in refusal(command, "E-EVAL-TEXT", INT4, "--text", short)


@leaves_nothing
def test_a_model_without_a_tokenizer(command, tmp_path):
    model = copy_model(INT4, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    message = refusal(command, "E-TOKENIZER", model, "--text", TEXT)
    assert "--prompt-ids" not in message


def test_models_that_do_not_go_together():
    spec = read_spec(INT4)
    smaller = dataclasses.replace(spec, vocab_size=1990)
    with pytest.raises(InputError, match=r"2000 .* 1990") as refused:
        check_vocabularies(spec, smaller)
    assert refused.value.code == "E-EVAL-VOCAB"
    with pytest.raises(InputError) as refused:
        check_samples(smaller, [[1, 2], [1, 1995], [1], [1] * 1025])
    assert refused.value.code == "E-EVAL-TOKENS"
    assert [line.split(":")[0] for line in refused.value.message.splitlines()] == [
        "sample 1",
        "sample 2",
        "sample 3",
    ]


@leaves_nothing
def test_a_reference_whose_logits_are_not_finite(command, tmp_path):
    reference = copy_model(DENSE, tmp_path / "reference")
    tensors = load_file(DENSE / "model.safetensors")
    tensors["model.norm.weight"].fill_(3e38)
    save_tensors(reference, tensors)
    message = refusal(command, "E-EVAL-REFERENCE", DENSE, "--reference", reference, *SMALL[:-3])
    assert f"of {3 * (LENGTH - 1)} positions" in message


def test_ranks_of_another_host():
    engine = SimpleNamespace(ranks=[{"node": "far"}])
    with pytest.raises(InputError, match="rank 0 runs on far") as refused:
        check_host(engine)  # type: ignore[arg-type]
    assert refused.value.code == "E-EVAL-HOST"


def test_a_file_of_logits_that_cannot_be_used(tmp_path):
    file = LogitsFile(path=tmp_path / "logits", vocabulary=4)
    row = np.arange(4, dtype=np.float32)
    with pytest.raises(EnvironmentFault, match="No such file") as fault:
        file.write([0], row[None])
    assert fault.value.code == "E-EVAL-FILE"
    file.reserve(2)
    file.write([1], row[None])
    assert (file.read(1) == row).all()
    with pytest.raises(EnvironmentFault, match="row 2 has 0 of 16 bytes") as fault:
        file.read(2)
    assert fault.value.code == "E-EVAL-FILE"


@leaves_nothing
def test_a_text_of_ones_own_when_none_is_given(command):
    outcome = command("evaluate", INT4, "--samples", 2, "--launcher", "local", "--json")
    assert outcome.json()["positions"] > 0
    assert "own sample" in outcome.json()["text"][0]


@leaves_nothing
def test_tasks_and_long_text_need_no_text_but_a_gate_does(command, tmp_path):
    options = ("--tasks", write_tasks(tmp_path, TASKS), "--launcher", "local", "--json")
    model = copy_model(DENSE, tmp_path / "model", max_position_embeddings=100)
    without = command("evaluate", model, *options, "--stress").json()
    assert (without["positions"], without["perplexity"], without["text"]) == (0, None, [])
    assert without["stress"]["model"]["tokens"] == 100 - 32
    options = (*options, "--reference", DENSE, "--max-kl", 0)
    gated = command("evaluate", DENSE, *options).json()
    assert gated["positions"] > 0
    assert gated["passed"] is True
