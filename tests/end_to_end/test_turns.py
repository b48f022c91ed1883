"""Conversations: prompts and answers against transformers, drift against its probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from isobit.launch.cli.evaluate.turns_report import turns_report
from isobit.launch.evaluation.evaluation import NOTHING, ModelRun, text_failures
from isobit.launch.evaluation.turns import ANSWER_TOKENS, Turn

from ..command import command, scratch
from ..support import DENSE, INT4, copy_model
from .test_evaluate import KL_BOUND, oracle, refusal

__all__ = ["command", "scratch"]

leaves_nothing = pytest.mark.usefixtures("scratch")
FLOAT = ("--dtype", "float32", "--launcher", "local", "--json")
TALK = [["def parse(text):", "    return None"], ["import os"]]
TEMPLATE = (
    "{% for m in messages %}# {{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant\n{% endif %}"
)


def write(folder: Path, conversations: list) -> Path:
    path = folder / "turns.jsonl"
    path.write_text("\n".join(map(json.dumps, conversations)))
    return path


def with_template(source: Path, target: Path) -> Path:
    model = copy_model(source, target)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return model


def hold(model: Path) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of every turn of TALK, by transformers alone."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = []
    for messages in TALK:
        history: list[dict[str, str]] = []
        prompt: list[int] = []
        for message in messages:
            if tokenizer.chat_template:
                history.append({"role": "user", "content": message})
                prompt = tokenizer.apply_chat_template(
                    history, add_generation_prompt=True, return_dict=False
                )
            else:
                prompt += tokenizer.encode(f"\n{message}\n" if prompt else message)
            whole = network.generate(
                torch.tensor([prompt]), max_new_tokens=ANSWER_TOKENS, do_sample=False
            )
            answer = whole[0, len(prompt) :].tolist()
            if answer[-1] == tokenizer.eos_token_id:
                answer.pop()
            turns.append((prompt, answer))
            history.append({"role": "assistant", "content": tokenizer.decode(answer)})
            prompt = prompt + answer
    return turns


@pytest.mark.parametrize("template", [True, False], ids=["template", "plain"])
def test_turns_against_transformers(command, tmp_path, template):
    model, reference = INT4, DENSE
    if template:
        model = with_template(INT4, tmp_path / "model")
        reference = with_template(DENSE, tmp_path / "reference")
    options = ("--reference", reference, "--turns", write(tmp_path, TALK), *FLOAT)
    found = command("evaluate", model, *options).json()["turns"]
    held = hold(reference)
    places = [(each["conversation"], each["turn"]) for each in found["turns"]]
    assert places == [(0, 0), (0, 1), (1, 0)]
    transcripts = [prompt + answer for prompt, answer in held]
    both = {name: oracle(name, transcripts) for name in (reference, model)}
    end = 0
    for each, (prompt, answer) in zip(found["turns"], held, strict=True):
        said = each["reference"]
        assert (said["prompt_tokens"], said["tokens"]) == (len(prompt), len(answer))
        end += len(prompt) + len(answer) - 1
        theirs, ours = (both[name][end - len(answer) : end] for name in (reference, model))
        divergence = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
        assert each["kl_mean"] == pytest.approx(divergence, rel=KL_BOUND)
        agreement = float((theirs.argmax(-1) == ours.argmax(-1)).double().mean())
        assert each["top1_agreement"] == pytest.approx(agreement, abs=1.5 / len(answer))


@leaves_nothing
def test_a_model_beside_itself_says_the_same_at_every_degree(command, tmp_path):
    options = ("--reference", INT4, "--turns", write(tmp_path, TALK), "--launcher", "local")
    one, two = (
        command("evaluate", INT4, *options, "-tp", degree, "--json").json() for degree in (1, 2)
    )
    assert {**one, "tp": 2} == two
    assert one["positions"] == 0
    assert one["perplexity"] is one["passed"] is None
    for each in one["turns"]["turns"]:
        assert each["same_answer"] is True
        assert (each["kl_mean"], each["top1_agreement"]) == (0.0, 1.0)


@leaves_nothing
def test_turns_beyond_the_context_are_left_out(command, tmp_path):
    config = {"max_position_embeddings": 40}
    model = copy_model(INT4, tmp_path / "model", **config)
    turns = write(tmp_path, [["import os", "import sys"]])
    outcome = command("evaluate", model, "--turns", turns, "--launcher", "local")
    assert outcome.status == 0, outcome.stderr
    assert "no room for 1" in outcome.stdout
    turns = write(tmp_path, [["a"], ["import os\n" * 20]])
    message = refusal(command, "E-EVAL-TURNS", model, "--turns", turns)
    assert message.startswith("conversation 1:")
    assert "40 positions" in message


@leaves_nothing
def test_turns_that_are_none(command, tmp_path):
    turns = write(tmp_path, [["fine"], "text", [], [1], [" "], {"a": 1}])
    message = refusal(command, "E-EVAL-TURNS", INT4, "--turns", turns)
    assert [line.split(":")[1] for line in message.splitlines()] == ["2", "3", "4", "5", "6"]
    turns.write_text("\n")
    assert "no conversations" in refusal(command, "E-EVAL-TURNS", INT4, "--turns", turns)
    absent = tmp_path / "absent"
    assert str(absent) in refusal(command, "E-EVAL-TURNS", INT4, "--turns", absent)


def run(turns: list[Turn]) -> ModelRun:
    return ModelRun(
        scores=NOTHING,
        greedy=[],
        choices=None,
        stress=[],
        stress_error=None,
        turns=turns,
        followed=None,
    )


def turn(number: int, answer: list[int], error: str | None = None) -> Turn:
    return Turn(conversation=2, turn=number, prompt=[1], answer=answer, error=error)


def test_broken_answers_fail_and_other_loops_are_told():
    ours = run([turn(0, [7] * 16), turn(1, [0] * 20), turn(2, [5], "step 3: NaN")])
    assert text_failures(ours) == [
        "conversation 2, turn 1: token 0 over and over from token 0 on",
        "conversation 2, turn 2: step 3: NaN",
    ]
    report = turns_report([[], [], ["a", "b", "c", "d"]], ours, None)
    loops = [each["model"] and each["model"]["repetition"] for each in report["turns"]]
    assert [loop and loop["period"] for loop in loops] == [1, 1, None, None]
    assert report["turns"][3]["model"] is None
