"""Faults that people have met, put into ranks through ISOBIT_FAULT after they have loaded.

Each works on one of the ranks, or at one of the degrees, only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import torch

from isobit.runtime.collectives.interface import Collectives
from isobit.runtime.worker.fault_injection import FaultContext

AllReduce = Callable[[torch.Tensor, torch.Tensor, str], None]
LAYER = 3
NORM_LAYER = 2
NAN_STEP = 3


class Wrapped:
    """Collectives whose sums a fault comes near to."""

    def __init__(self, right: Collectives, wrapper: Callable[..., None]) -> None:
        self.right, self.wrapper = right, wrapper
        self.invariant, self.all_gather, self.close = right.invariant, right.all_gather, right.close

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        self.wrapper(nodes, out, site, self.right.all_reduce)


def stop_in_the_second_step(context: FaultContext) -> None:
    """Rank 1 is stopped as if by Ctrl-Z: alive, and silent."""
    _in_the_second_step(context, signal.SIGSTOP)


def die_in_the_second_step(context: FaultContext) -> None:
    _in_the_second_step(context, signal.SIGKILL)


def _in_the_second_step(context: FaultContext, number: signal.Signals) -> None:
    steps: list[int] = []

    def send(nodes: torch.Tensor, out: torch.Tensor, site: str, right: AllReduce) -> None:
        if site == "layers.0.self_attn.o_proj.out":
            steps.append(1)
            if len(steps) == 2 and context.rank == 1:
                os.kill(os.getpid(), number)
        right(nodes, out, site)

    around_all_reduce(context, send)


def ignore_the_tail_of_k(context: FaultContext) -> None:
    """On rank 0 one kernel stops a line short of the end of K."""
    if context.rank == 0:
        context.decoder.weights.layers[LAYER].products["gate"].run_offsets[-1] -= 8


def around_all_reduce(context: FaultContext, wrapper: Callable[..., None]) -> None:
    """Have every all-reduce go through wrapper(nodes, out, site, the right one)."""
    context.decoder.collectives = Wrapped(context.decoder.collectives, wrapper)


def sum_in_another_order(context: FaultContext) -> None:
    """At degree 2 a rank adds up its atoms from the first to the last instead of by the tree."""
    if context.degree != 2:
        return
    merges = context.decoder.recorded.merges
    merges[:] = 1
    merges[0] = 0


def flip_a_weight_bit(context: FaultContext) -> None:
    """Rank 1 of 2 holds one int4 code of a down_proj with its highest bit flipped, in atom 5.

    Atom 5 is the second of rank 1: features 64 to 127 of its slice, 8 of them in a line.
    """
    if context.degree == 2 and context.rank == 1:
        context.decoder.weights.layers[LAYER].products["down"].data[2, 10, 5] ^= 1 << 3


def bias_on_all_ranks_but_one(context: FaultContext) -> None:
    """Every rank but the first adds o_proj's bias to its part: right at degree 2, wrong at 3."""
    _bias_on_ranks(context, first=1)


def bias_on_all_ranks(context: FaultContext) -> None:
    """Every rank adds it: right at degree 1 only."""
    _bias_on_ranks(context, first=0)


def _bias_on_ranks(context: FaultContext, first: int) -> None:
    if context.degree == 1:
        return
    layers = context.decoder.weights.layers
    biases = {f"layers.{i}.self_attn.o_proj.out": w.biases["o"] for i, w in enumerate(layers)}
    for weights in layers:
        weights.biases["o"] = None

    def add_bias(nodes: torch.Tensor, out: torch.Tensor, site: str, right: AllReduce) -> None:
        if context.rank >= first and (bias := biases.get(site)) is not None:
            nodes[0] += bias
        right(nodes, out, site)

    around_all_reduce(context, add_bias)


def change_a_norm(context: FaultContext) -> None:
    """One number of a norm that every rank holds differs on rank 1."""
    if context.rank == 1:
        context.decoder.weights.layers[NORM_LAYER].input_norm[5] *= 1.5


def change_a_norm_later(context: FaultContext) -> None:
    """The same, but only when the first step begins: loading was right."""
    right = context.decoder.forward

    def forward(step):
        change_a_norm(context)
        return right(step)

    context.decoder.forward = forward


def hold_another_kv_head(context: FaultContext) -> None:
    """Rank 1 has one wrong code in a KV head that it shares with rank 0."""
    if context.rank == 1:
        context.decoder.weights.layers[LAYER].products["k"].data[0, 3, 2] ^= 1


def read_a_stale_buffer(context: FaultContext) -> None:
    """Rank 1 reads at one site what the site before it left in the buffer."""
    before: list[torch.Tensor] = []

    def stale(nodes: torch.Tensor, out: torch.Tensor, site: str, right: AllReduce) -> None:
        right(nodes, out, site)
        late = context.rank == 1 and site == f"layers.{LAYER}.mlp.down_proj.out"
        fresh = out.clone()
        if late:
            out.copy_(before[-1])
        before[:] = [fresh]

    around_all_reduce(context, stale)


def lose_the_last_16_bytes(context: FaultContext) -> None:
    """On rank 1 an all-reduce leaves the last 16 bytes as the all-reduce before it made them."""
    before = torch.zeros(4)

    def lose(nodes: torch.Tensor, out: torch.Tensor, site: str, right: AllReduce) -> None:
        right(nodes, out, site)
        if context.rank == 1:
            lost = out.view(-1)[-4:].clone()
            out.view(-1)[-4:] = before
            before.copy_(lost)

    around_all_reduce(context, lose)


def receive_a_wrong_bit(context: FaultContext) -> None:
    """Rank 1 receives a sum with one bit flipped, high enough to survive the next addition."""

    def flip(nodes: torch.Tensor, out: torch.Tensor, site: str, right: AllReduce) -> None:
        right(nodes, out, site)
        if context.rank == 1 and site == f"layers.{LAYER}.mlp.down_proj.out":
            out.view(torch.int32)[0, 7] ^= 1 << 22

    around_all_reduce(context, flip)


def nan_in_the_logits(context: FaultContext) -> None:
    """In one step one logit is NaN, on every rank."""
    right, steps = context.decoder.forward, []

    def forward(step):
        hidden, logits = right(step)
        steps.append(step)
        if len(steps) == NAN_STEP:
            logits = logits.clone()
            logits[0, 11] = float("nan")
        return hidden, logits

    context.decoder.forward = forward
