"""How fast a model runs: one static batch of random prompts, timed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from .config import SamplingSettings
from .engine import Engine
from .launcher import cores

BANDWIDTH_BYTES = 1 << 30
BANDWIDTH_RUNS = 7


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`batch_size` prompts of `prompt_tokens` random tokens, each answered by `new_tokens`."""

    batch_size: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Medians over decode steps. Times in milliseconds or seconds, bandwidth in 10^9 bytes/s.

    `weights_bytes` is what all ranks together read in one decode step. `bandwidth_share` is the
    least time that reading it could take over the time that a step took; `overhead_share` is the
    part of a step outside the kernels of the slowest rank.
    """

    decode_ms_per_step: float
    decode_tokens_per_s: float
    prefill_s: float
    prefill_tokens_per_s: float
    weights_bytes: int
    read_bandwidth_gb_s: float
    bandwidth_share: float
    overhead_share: float


def measure(engine: Engine, workload: Workload, read_bandwidth: float) -> Throughput:
    """Run the workload once to warm up (a few tokens) and once to measure."""
    generator = torch.Generator().manual_seed(0)
    shape = (workload.batch_size, workload.prompt_tokens)
    prompts = torch.randint(engine.spec.vocab_size, shape, generator=generator).tolist()

    def run(tokens: int):
        sampling = SamplingSettings(max_tokens=tokens, ignore_eos=True)
        return engine.generate(prompts, [sampling] * workload.batch_size)

    run(2)
    batch = run(workload.new_tokens)
    step_s = statistics.median(batch.decode_s)
    kernels_s = statistics.median(batch.decode_kernels_s)
    weights = sum(rank["step_bytes"] for rank in engine.ranks)
    return Throughput(
        decode_ms_per_step=step_s * 1000,
        decode_tokens_per_s=statistics.median(
            tokens / seconds
            for tokens, seconds in zip(batch.decode_tokens, batch.decode_s, strict=True)
        ),
        prefill_s=batch.prefill_s,
        prefill_tokens_per_s=workload.batch_size * workload.prompt_tokens / batch.prefill_s,
        weights_bytes=weights,
        read_bandwidth_gb_s=read_bandwidth / 1e9,
        bandwidth_share=weights / read_bandwidth / step_s,
        overhead_share=1 - kernels_s / step_s,
    )


def read_bandwidth() -> float:
    """Bytes per second that all cores together read from memory: the best of a few sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        values = torch.ones(BANDWIDTH_BYTES // 4)
        times = []
        for _ in range(BANDWIDTH_RUNS):
            started = time.perf_counter()
            values.sum()
            times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return BANDWIDTH_BYTES / min(times)
