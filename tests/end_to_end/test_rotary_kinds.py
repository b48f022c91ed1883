"""Models with scaled rotary embeddings: logits of transformers, the same bits at tp 1 and 2."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from isobit.runtime.doctor.damage import Sample, plain_logits
from isobit.runtime.doctor.plain_model import PlainModel

from ..support import all_logits, isobit, save_random_model
from .test_oracle import FLOAT32_BOUND, SHAPE, oracle_logits, relative_error

DRAWN = torch.Generator().manual_seed(1)
IDS = [int(i) for i in torch.randint(0, 120, (150,), generator=DRAWN)]
ORIGINAL = 64
FACTORS = {
    "short_factor": [1.0 + 0.2 * i for i in range(8)],
    "long_factor": [1.5 + 1.5 * i for i in range(8)],
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": ORIGINAL}


@dataclasses.dataclass(frozen=True)
class Rope:
    settings: dict
    tokens: int = 150
    max_model_len: int | None = None


KINDS = {
    "linear": Rope({"rope_type": "linear", "factor": 4.0}),
    "llama3": Rope(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        }
    ),
    "yarn": Rope(YARN),
    "yarn-scaled": Rope({**YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}),
    "yarn-beyond": Rope({**YARN, "factor": 2.0, "attention_factor": 1.3}, 150, 150),
    "longrope-short": Rope({"rope_type": "longrope", **FACTORS}, ORIGINAL),
    "longrope-long": Rope({"rope_type": "longrope", **FACTORS}, 150, 150),
    "dynamic": Rope({"rope_type": "dynamic", "factor": 4.0}),
}


@pytest.fixture(params=KINDS)
def case(request, tmp_path):
    """A random model in the family that suits the kind, saved by transformers."""
    rope = KINDS[request.param]
    settings = {"rope_theta": 10000.0, **rope.settings}
    shape = dict(SHAPE)
    if request.param.startswith("longrope"):
        settings["original_max_position_embeddings"] = ORIGINAL
    torch.manual_seed(0)
    if request.param == "yarn":
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32, rope_parameters=settings))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=settings))
    return save_random_model(tmp_path / "model", model), rope


def test_logits_are_those_of_one_pass_of_transformers(case):
    """Without a cache: transformers chooses longrope's factors anew by the length of each pass."""
    model, rope = case
    ids = IDS[: rope.tokens]
    wanted = oracle_logits(model, ids)
    ours = all_logits(model, ids, "float32", max_model_len=rope.max_model_len)
    assert relative_error(ours, wanted) < FLOAT32_BOUND
    cut = all_logits(model, ids, "float32", degree=2, max_model_len=rope.max_model_len)
    assert torch.equal(cut, ours)
    plain = plain_logits(PlainModel(model, rope.max_model_len), [Sample(ids=ids, begin=1)])[0]
    assert relative_error(plain, wanted[: len(plain)]) < FLOAT32_BOUND


@pytest.fixture(scope="module")
def longrope(tmp_path_factory):
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}
    rope["original_max_position_embeddings"] = ORIGINAL
    folder = tmp_path_factory.mktemp("longrope") / "model"
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope))
    return str(save_random_model(folder, model))


def test_the_length_of_an_engine_chooses_the_factors_of_all_its_ranks(longrope):
    """verify at tp 1 and 2: a short prompt has other logits where longer ones are allowed."""
    digests = {}
    for length, variant in ((ORIGINAL, "short"), (ORIGINAL + 1, "long")):
        options = ("--max-model-len", str(length), "--prompt-ids", "1,2,3", "--max-tokens", "2")
        done = isobit("verify", longrope, *options, "--launcher", "local", "--json")
        assert done.returncode == 0, done.stderr
        assert f"the {variant} factors" in done.stderr
        report = json.loads(done.stdout)
        assert report["identical"]
        assert report["rotary"] == {
            "kind": "longrope",
            "variant": variant,
            "original_length": ORIGINAL,
        }
        digests[variant] = report["degrees"]["2"]["logits_digest"]
    assert digests["short"] != digests["long"]


COMMANDS = {
    "generate": ("generate", "--prompt-ids", "1,2,3", "--max-tokens", "8"),
    "verify": ("verify", "--prompt-ids", "1,2,3", "--max-tokens", "8"),
    "trace": ("trace", "OUT", "--prompt-ids", "1,2,3", "--max-tokens", "8"),
    "bench": ("bench", "throughput", "--prompt-tokens", "3", "--new-tokens", "8"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_prompt_that_does_not_fit_is_refused_before_a_rank_starts(name, longrope, tmp_path):
    words = [w.replace("OUT", str(tmp_path / "out")) for w in COMMANDS[name]]
    at = 2 if name == "bench" else 1
    command = [*words[:at], longrope, *words[at:], "--max-model-len", "10", "--json"]
    done = isobit(*command)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (2, "E-PROMPT")
    assert "3 tokens and 8 new ones exceed the 10 tokens of a sequence" in error["message"]


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--prompt-ids", "1"),
        ("verify", "--prompt-ids", "1"),
        ("plan",),
        ("doctor", "--prompt-ids", "1"),
        ("evaluate",),
        ("bench throughput",),
    ],
    ids=" ".join,
)
def test_a_length_that_the_model_does_not_have(words, longrope):
    done = isobit(*words[0].split(), longrope, *words[1:], "--max-model-len", "300", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (2, "E-PLAN-LENGTH")
    assert "1 to 256 tokens" in error["message"]
