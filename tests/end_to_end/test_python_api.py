"""`isobit.LLM`: names, defaults and outputs of vLLM's, and refusals by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import isobit
from isobit.errors import InputError, NotSupportedError
from isobit.launch.api.llm import LLM
from isobit.launch.api.sampling_params import SamplingParams

from ..support import GOLDEN, INT4, copy_model

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(INT4), tensor_parallel_size=2, max_num_seqs=2, launcher="local") as found:
        yield found


def test_outputs_come_in_the_order_of_prompts(llm: LLM) -> None:
    prompts = ["import os", {"prompt_token_ids": [5, 6, 7]}, "def read", "class A"]
    outputs = llm.generate(prompts, GREEDY)
    assert [each.prompt for each in outputs] == ["import os", None, "def read", "class A"]
    assert outputs[1].prompt_token_ids == [5, 6, 7]
    alone = [llm.generate(prompt, GREEDY)[0].outputs[0] for prompt in prompts]
    assert [each.outputs[0] for each in outputs] == alone
    answer = outputs[0].outputs[0]
    assert answer.text == llm.get_tokenizer().decode(answer.token_ids, outputs[0].prompt_token_ids)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 6)


def test_requests_without_a_seed_draw_apart_and_again_by_the_seed_that_is_told(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True)
    first, second = llm.generate([{"prompt_token_ids": [5, 6]}] * 2, params)
    assert first.outputs[0].token_ids != second.outputs[0].token_ids
    seeded = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True, seed=second.seed)
    again = llm.generate({"prompt_token_ids": [5, 6]}, seeded)[0]
    assert again.outputs[0] == second.outputs[0]


def test_a_folder_without_a_tokenizer_answers_ids_with_ids(tmp_path, caplog) -> None:
    folder = copy_model(INT4, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with LLM(str(folder), launcher="local") as bare:
        found = bare.generate({"prompt_token_ids": [5, 6, 7]}, GREEDY)[0].outputs[0]
        with pytest.raises(InputError, match="E-TOKENIZER"):
            bare.generate("import os", GREEDY)
    assert (found.text, len(found.token_ids)) == ("", 6)
    assert "answers have no text, only token ids" in caplog.text


def test_the_end_token_of_the_tokenizer_ends_answers_to_ids_too(llm: LLM, monkeypatch) -> None:
    """Whether a text has been read before makes no difference."""
    ids = {"prompt_token_ids": [5, 6, 7]}
    second = llm.generate(ids, GREEDY)[0].outputs[0].token_ids[1]
    monkeypatch.setattr("isobit.launch.api.llm.tokenizer_stop_ids", lambda *_: (second,))
    with LLM(str(INT4), launcher="local") as made:
        answer = made.generate(ids, SamplingParams(temperature=0, max_tokens=6))[0].outputs[0]
    assert (answer.finish_reason, answer.token_ids[-1]) == ("stop", second)


def test_as_many_params_as_prompts(llm: LLM) -> None:
    with pytest.raises(InputError, match="E-SAMPLING 1 sampling_params for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: SamplingParams(temprature=0.5), InputError, "did you mean temperature?"),
        (lambda: SamplingParams(n=2), NotSupportedError, "n=2"),
        (lambda: SamplingParams(stop=["x"]), NotSupportedError, "stop=\\['x'\\]"),
        (lambda: SamplingParams(top_p=0), InputError, "E-SAMPLING"),
        (lambda: LLM("m", tensor_paralel_size=2), InputError, "did you mean tensor_parallel_size?"),
        (lambda: LLM("m", enable_lora=True), NotSupportedError, "enable_lora=True"),
    ],
)
def test_what_is_not_there_is_refused_by_name(make, error, says) -> None:
    with pytest.raises(error, match=says) as raised:
        make()
    assert type(raised.value) is error


def test_neutral_values_of_what_is_not_built_are_taken() -> None:
    made = SamplingParams(n=1, stop=None, logprobs=None, repetition_penalty=1.0, top_k=-1)
    assert (made.temperature, made.max_tokens, made.top_k) == (1.0, 16, 0)


def test_functions() -> None:
    assert isobit.plan(str(GOLDEN / "gptq-v1"), tensor_parallel_size=2).degree == 2
    assert isobit.inspect(str(GOLDEN / "gptq-v1")).verdict == "healthy"


def test_asking_for_the_version_imports_no_torch() -> None:
    code = "import sys, isobit; print(isobit.__version__, 'torch' in sys.modules, dir(isobit))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = "['LLM', 'SamplingParams', '__version__', 'inspect', 'plan', 'verify']"
    assert done.stdout == f"{isobit.__version__} False {names}\n"
