"""More faults for the doctor, put into ranks through ISOBIT_FAULT; each at degrees 2 and above."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from isobit.kernels.program import record
from isobit.kernels.step.kv_cache import KVCache
from isobit.runtime.worker.fault_injection import FaultContext

from .seeded import AllReduce, around_all_reduce

LAYER = 1
SITE = f"layers.{LAYER}.mlp.down_proj.out"


def _product(context: FaultContext, name: str):
    """Of the last layer where there are fewer."""
    return context.model.layers[: LAYER + 1][-1].products[name]


def scale_the_wrong_groups(context: FaultContext) -> None:
    """As act-order with local scales: rank 1 multiplies by the scales of neighbouring groups."""
    if context.degree > 1 and context.rank == 1:
        scales = _product(context, "down").scales
        scales.copy_(scales.roll(1, dims=1))


def ignore_g_idx(context: FaultContext) -> None:
    """Rank 1 takes the features of o_proj in the order of the file, whatever their group."""
    if context.degree > 1 and context.rank == 1:
        gather = _product(context, "o").gather
        real = gather >= 0
        gather[real] = gather[real].sort().values


def pad_with_garbage(context: FaultContext) -> None:
    """The last rank's padding of down_proj holds codes that are not the zero point."""
    if context.degree > 1 and context.rank == context.degree - 1:
        _product(context, "down").data[:, -1] ^= 0x11111111


def take_the_next_kv_head(context: FaultContext) -> None:
    """Rank 1 keeps the keys of another KV head than its queries read."""
    if context.degree > 1 and context.rank == 1:
        data = _product(context, "k").data
        data.copy_(data.flip(1))


def flip_a_bit(context: FaultContext) -> None:
    """Rank 1 holds one bit of one weight that is not the file's."""
    if context.degree > 1 and context.rank == 1:
        _product(context, "down").data.view(torch.uint8).flatten()[0] ^= 1 << 3


def read_the_wrong_kv_head(context: FaultContext) -> None:
    """Rank 1's queries are told to read the last KV head that it keeps."""
    if context.degree > 1 and context.rank == 1:
        heads = context.decoder.recorded.tables()["head_to_kv"]
        heads.copy_(heads.flip(0))


def add_the_bias_twice(context: FaultContext) -> None:
    """Every rank but the first adds o_proj's bias within the sum; it is added behind it as well."""
    biases = {
        f"layers.{i}.self_attn.o_proj.out": w.biases["o"]
        for i, w in enumerate(context.model.layers)
    }

    def add(nodes: torch.Tensor, out: torch.Tensor, site: str, right: AllReduce) -> None:
        if context.rank and (bias := biases.get(site)) is not None:
            nodes[0] += bias
        right(nodes, out, site)

    around_all_reduce(context, add)


def compute_in_another_dtype(context: FaultContext) -> None:
    if context.degree > 1 and context.rank == 1:
        decoder = context.decoder
        decoder.dtype = torch.float32
        decoder.caches = [
            KVCache.allocate(c.pages, c.kv_heads, c.head_size, torch.float32)
            for c in decoder.caches
        ]


def compute_a_column_wrongly(context: FaultContext) -> None:
    """On rank 1 the kernel of one up_proj halves one of its outputs."""
    if context.degree > 1 and context.rank == 1:
        _after_linear("up", context, lambda out: out[..., 5].mul_(0.5))


def lose_an_atom(context: FaultContext) -> None:
    """On rank 1 the kernel of one down_proj leaves out the end of what it multiplies."""
    if context.degree > 1 and context.rank == 1:
        _after_linear("down", context, lambda out: out[-1].mul_(0.9))


def _after_linear(
    name: str, context: FaultContext, change: Callable[[torch.Tensor], object]
) -> None:
    right, weight = record.linear, _product(context, name)

    def linear(program, x, weights, outs, **more):
        right(program, x, weights, outs, **more)
        for each, out in zip(weights, outs, strict=True):
            if each is weight:
                program.call(lambda out=out: change(program.planes_of(out)))

    record.linear = linear


def sum_without_a_rank(context: FaultContext) -> None:
    """At one site what rank 1 has to add does not arrive."""

    def lose(nodes: torch.Tensor, out: torch.Tensor, site: str, right: AllReduce) -> None:
        right(nodes * 0 if context.rank == 1 and site == SITE else nodes, out, site)

    around_all_reduce(context, lose)


def normalize_with_another_epsilon(context: FaultContext) -> None:
    if context.degree > 1 and context.rank == 1:
        context.decoder.spec = dataclasses.replace(context.decoder.spec, norm_eps=1e-3)


def forget_the_first_token(context: FaultContext) -> None:
    """From its second step on rank 1 finds zeros among the values of the first token."""
    right, steps = context.decoder.forward, []

    def forward(step):
        steps.append(step)
        if context.degree > 1 and context.rank == 1 and len(steps) == 2:
            context.decoder.caches[LAYER].values[0, :, 0] = 0
        return right(step)

    context.decoder.forward = forward


def sleep_in_the_second_step(context: FaultContext) -> None:
    right, steps = context.decoder.forward, []

    def forward(step):
        steps.append(step)
        if context.degree > 1 and context.rank == 1 and len(steps) == 2:
            time.sleep(60)
        return right(step)

    context.decoder.forward = forward
