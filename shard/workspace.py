"""What a step needs beside weights and KV cache: activations, partial sums, gathered logits.

The largest of four moments of runtime/decoder.py, in bytes: an upper bound that it comes close to.
T rows, L of them sampled, H hidden size, e bytes of the run's dtype, tp ranks; on this rank A atoms
in S complete subtrees (M at most on any rank), q and kv features of its query and KV heads, I
intermediate features, V vocabulary columns (W at most on any rank); P padded and N true vocabulary;
g = tp, or 0 on one rank. Every moment has `kept` added: a row behind each layer's two norms.

    kept    2 * layers * e*H + L * e*H
    embed   T*H * (e*(g + tp + 2) + 4)
    reduce  4*T*H * (A + S + M*(1 + g) + log2(atoms))
    attn    T * (4*H + e*H + 4*(q + 2*kv) + 2*e*q) + reduce
    mlp     T * (4*H + e*H + 8*I + e*I) + reduce
    logits  4*T*H + L * (4*H + e*H + 4*(V + W*(1 + g) + P + N))
"""

from __future__ import annotations

from dataclasses import dataclass

from .atoms import complete_subtrees
from .plan import ShardPlan
from .spec import ModelSpec

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes of each moment of a step of `rows` rows; two of them grow with the sampled rows."""

    rows: int
    kept: int
    kept_per_row: int
    embed: int
    attention: int
    mlp: int
    residual: int
    logits_per_row: int

    def total(self, sampled: int) -> int:
        """The largest moment when min(sampled, rows) rows are sampled."""
        sampled = min(sampled, self.rows)
        logits = self.residual + sampled * self.logits_per_row
        moment = max(self.embed, self.attention, self.mlp, logits)
        return moment + self.kept + sampled * self.kept_per_row


def step_bytes(spec: ModelSpec, plan: ShardPlan, rows: int, width: int) -> list[StepBytes]:
    """The formulas above for `rows` rows, for every rank of a plan; `width` is e."""
    owned = [plan.owned(rank) for rank in range(plan.degree)]
    subtrees = [len(complete_subtrees(plan.atoms, atoms)) for atoms in owned]
    vocab = [plan.vocab.slice(atoms).size for atoms in owned]
    hidden, gathered = spec.hidden_size, plan.degree if plan.degree > 1 else 0
    normed = rows * hidden * (FLOAT32 + width)
    gathered_logits = max(vocab) * (1 + gathered) + plan.vocab.padded + plan.vocab.true
    levels = plan.atoms.bit_length() - 1
    steps = []
    for rank, atoms in enumerate(owned):
        q = plan.heads.slice(atoms).size * plan.head_size
        kv = len(plan.kv_heads(rank)) * plan.head_size
        wide = plan.intermediate.slice(atoms).size
        sums = len(atoms) + subtrees[rank] + max(subtrees) * (1 + gathered) + levels
        reduce = FLOAT32 * rows * hidden * sums
        steps.append(
            StepBytes(
                rows=rows,
                kept=2 * spec.layers * width * hidden,
                kept_per_row=width * hidden,
                embed=rows * hidden * (width * (gathered + plan.degree + 2) + FLOAT32),
                attention=normed + rows * (FLOAT32 * (q + 2 * kv) + 2 * width * q) + reduce,
                mlp=normed + rows * wide * (2 * FLOAT32 + width) + reduce,
                residual=FLOAT32 * rows * hidden,
                logits_per_row=hidden * (FLOAT32 + width)
                + FLOAT32 * (vocab[rank] + gathered_logits),
            )
        )
    return steps
