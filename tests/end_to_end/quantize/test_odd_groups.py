"""13 and 107 groups of 128, act-order and asymmetric: the dense model's tokens at every degree."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ...support import ROOT, all_logits

KINDS = {"plain": (False, True), "act-order": (True, True), "asymmetric": (False, False)}
PROMPT = [3, 141, 59, 265, 358, 97, 93, 238]
NEW_TOKENS = 16


def maker():
    spec = importlib.util.spec_from_file_location("odd_groups", ROOT / "examples/odd_groups.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def dense_tokens(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(PROMPT)
    for _ in range(NEW_TOKENS):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [13, 107])
def test_tokens_of_the_dense_model(groups, kind, tmp_path):
    act_order, symmetric = KINDS[kind]
    maker().write(tmp_path, groups, act_order, symmetric)
    tokens = dense_tokens(tmp_path / "dense")
    ids = PROMPT + tokens
    for layout in ("pad", "ragged"):
        one = all_logits(tmp_path / "gptq", ids, "float32", layout)
        # Given the same text so far, the likeliest next token at each position is the dense one.
        assert one.argmax(dim=1)[len(PROMPT) - 1 : -1].tolist() == tokens
        for degree in (2, 3, 4):
            many = all_logits(tmp_path / "gptq", ids, "float32", layout, degree)
            assert torch.equal(many, one), (layout, degree)
