"""Dynamic W8A8 against the same model worked out by hand, in numpy and float64.

By hand are the norms, rotary embeddings, attention and the MLP of Qwen2 as its paper has them, and
the rule of rounding of docs/formats.md: a scale per token and atom.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isobit.shard.model.spec import read_spec
from isobit.shard.plan.modules import atom_ends, layer_modules
from isobit.shard.plan.plan import PlanSettings, make_plan

from ..support import GOLDEN, all_logits

FOLDER = GOLDEN / "ct-w8a8-dynamic"
IDS = load_file(FOLDER / "expected.safetensors")["ids"].tolist()[:4]
BOUND = 1e-5
# Two ways of computing an activation differ by some 1e-5 of a code at most. No code of the prompt
# may lie nearer to a tie, or the two would round it apart.
LEAST_DISTANCE = 1e-4


class ByHand:
    """The logits of a prompt, and how near to a tie any activation came."""

    def __init__(self, layout: str) -> None:
        self.config = json.loads((FOLDER / "config.json").read_text())
        tensors = load_file(FOLDER / "model.safetensors")
        self.tensors = {name: t.double().numpy() for name, t in tensors.items()}
        self.nearest = 0.5
        spec = read_spec(FOLDER)
        plan = make_plan(spec, PlanSettings(degree=1, layout=layout))  # type: ignore[arg-type]
        modules = layer_modules(spec, 0)
        self.ends = {name: atom_ends(plan, modules[name], 0) for name in ("o", "down")}

    def logits(self, ids: list[int]) -> np.ndarray:
        c, t = self.config, self.tensors
        x = t["model.embed_tokens.weight"][ids]
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, p + "input_layernorm"), p + "self_attn.")
            y = self.norm(x, p + "post_attention_layernorm")
            gate = self.linear(y, p + "mlp.gate_proj", [])
            up = self.linear(y, p + "mlp.up_proj", [])
            x = x + self.linear(
                gate / (1 + np.exp(-gate)) * up, p + "mlp.down_proj", self.ends["down"]
            )
        head = "model.embed_tokens" if c["tie_word_embeddings"] else "lm_head"
        return self.norm(x, "model.norm") @ t[f"{head}.weight"].T

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + self.config["rms_norm_eps"]) * self.tensors[f"{name}.weight"]

    def attention(self, x: np.ndarray, p: str) -> np.ndarray:
        c = self.config
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        length, d = len(x), c.get("head_dim") or c["hidden_size"] // heads
        q, k, v = (
            self.linear(x, f"{p}{name}_proj", []).reshape(length, -1, d) for name in ("q", "k", "v")
        )
        theta = (c.get("rope_parameters") or c)["rope_theta"]
        angle = np.arange(length)[:, None] * theta ** (-np.arange(0, d, 2) / d)
        q, k = (self.rotated(part, np.cos(angle), np.sin(angle)) for part in (q, k))
        out = np.empty((length, heads, d))
        for head in range(heads):
            other = head * kv // heads
            score = q[:, head] @ k[:, other].T / np.sqrt(d)
            score[np.triu_indices(length, 1)] = -np.inf
            weight = np.exp(score - score.max(-1, keepdims=True))
            out[:, head] = weight / weight.sum(-1, keepdims=True) @ v[:, other]
        return self.linear(out.reshape(length, -1), f"{p}o_proj", self.ends["o"])

    @staticmethod
    def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        low, high = np.split(x, 2, axis=-1)
        cos, sin = cos[:, None], sin[:, None]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def linear(self, x: np.ndarray, name: str, ends: list[int]) -> np.ndarray:
        """The sum over atoms; `ends` are theirs in input features, [] for one atom."""
        codes, scales = self.tensors[f"{name}.weight"], self.tensors[f"{name}.weight_scale"][:, 0]
        out = np.zeros((len(x), len(codes)))
        ends = [min(end, x.shape[1]) for end in ends] or [0, x.shape[1]]
        for begin, end in itertools.pairwise(ends):
            if begin == end:
                continue
            part = x[:, begin:end].astype(np.float32)
            scale = np.abs(part).max(1, keepdims=True) / np.float32(127)
            exact = part / scale
            self.nearest = min(self.nearest, float(np.abs(exact % 1 - 0.5).min()))
            q = np.rint(exact).astype(np.int64)
            assert np.abs(q).max() == 127
            out += (q @ codes[:, begin:end].astype(np.int64).T) * scale * scales
        return out + self.tensors.get(f"{name}.bias", 0)


@pytest.mark.parametrize("layout", ["pad", "ragged"])
def test_logits_equal_those_worked_out_by_hand_at_every_size(layout):
    by_hand = ByHand(layout)
    expected = torch.from_numpy(by_hand.logits(IDS))
    assert by_hand.nearest > LEAST_DISTANCE
    for degree in (1, 2, 3, 4):
        ours = all_logits(FOLDER, IDS, "float32", layout, degree)
        error = (ours.double() - expected).abs().max() / expected.abs().max()
        assert error < BOUND, degree
