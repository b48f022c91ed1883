"""What a step of the forward pass needs beside weights and KV cache: its buffers, in bytes.

T rows, L of them sampled, H hidden size, e bytes of the run's dtype, tp ranks; on this rank S
complete subtrees (M at most on any rank), q and kv features of its query and KV heads, I
intermediate features; W vocabulary columns at most on any rank, N vocabulary; g = tp, or 0 on one
rank, and r = 1, or 0 on one rank.

    fixed        2 * layers * e*H                                a row behind each layer's norms
    per row      4*H + 2*e*H + 4*(q + 2*kv) + 2*e*q + (8 + e)*I + 4*H*(S + r) + e*H*g
    per sampled  4*H + e*H + 4*(W*(1 + g) + N)
    gather       T * 4*H * (M*g + max(M, log2(atoms / smallest subtree) + 1)) above one rank,
                 and T * 4*H * M more where S < M

That is the most that any collectives take. Over several hosts ranks gather the nodes of hosts,
which are at most as many, and in place.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model.spec import ModelSpec
from ..plan.atoms import complete_subtrees
from ..plan.plan import ShardPlan

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class StepBytes:
    """Bytes that a rank's buffers take once a step of `rows` rows has run, gathers included."""

    rows: int
    fixed: int
    per_row: int
    per_sampled: int

    def total(self, sampled: int) -> int:
        """Everything, when min(sampled, rows) rows are sampled."""
        return self.fixed + self.rows * self.per_row + min(sampled, self.rows) * self.per_sampled


def step_bytes(spec: ModelSpec, plan: ShardPlan, rows: int, width: int) -> list[StepBytes]:
    """The formulas above for `rows` rows, for every rank of a plan; `width` is e."""
    owned = [plan.owned(rank) for rank in range(plan.degree)]
    subtrees = [len(complete_subtrees(plan.atoms, atoms)) for atoms in owned]
    columns = max(plan.vocab.slice(atoms).size for atoms in owned)
    hidden, several = spec.hidden_size, int(plan.degree > 1)
    gathered = plan.degree * several
    smallest = min(length for atoms in owned for _, length in complete_subtrees(plan.atoms, atoms))
    levels = (plan.atoms // smallest).bit_length() - 1
    sums = levels + (levels > 1)  # at most at once: a left sum on each level, two below, their sum
    most = max(subtrees)
    steps = []
    for rank, atoms in enumerate(owned):
        q = plan.heads.slice(atoms).size * plan.head_size
        kv = len(plan.kv_heads(rank)) * plan.head_size
        wide = plan.intermediate.slice(atoms).size
        filled_up = most if subtrees[rank] < most else 0
        messages = several * (most * gathered + filled_up + max(most, sums))
        float_rows = FLOAT32 * hidden * (1 + subtrees[rank] + several + messages)
        steps.append(
            StepBytes(
                rows=rows,
                fixed=2 * spec.layers * width * hidden,
                per_row=float_rows
                + width * hidden * (2 + gathered)
                + FLOAT32 * (q + 2 * kv)
                + 2 * width * q
                + wide * (2 * FLOAT32 + width),
                per_sampled=hidden * (FLOAT32 + width)
                + FLOAT32 * (columns * (1 + gathered) + spec.vocab_size),
            )
        )
    return steps
