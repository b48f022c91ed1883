"""How fast a model runs: one static batch of random prompts, timed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from ...kernels import ops
from ...kernels.measure.machine import Machine
from ..engine.engine import Engine
from ..engine.results import Batch
from ..ranks.launcher import cores
from ..scheduler.step_timer import added
from ..settings.engine import SamplingSettings

READS = 5


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`batch_size` prompts of `prompt_tokens` random tokens, each answered by `new_tokens`.

    All of it is run `rounds` times.
    """

    batch_size: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 64
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Medians over decode steps. Times in milliseconds or seconds, bandwidth in 10^9 bytes/s.

    `weights_bytes` is what all ranks together read in one decode step. `bandwidth_share` is the
    least time that reading it could take over the time that a step took. Over all decode steps, by
    the clocks of the ranks: `overhead_share` is the part outside the kernels of the busiest rank,
    and `collectives_share` that within collectives over shared memory, waiting for other ranks
    included, of the rank that waits longest.
    """

    decode_ms_per_step: float
    decode_tokens_per_s: float
    prefill_s: float
    prefill_tokens_per_s: float
    weights_bytes: int
    read_bandwidth_gb_s: float
    bandwidth_share: float
    overhead_share: float
    collectives_share: float


def measure(engine: Engine, workload: Workload) -> Throughput:
    """Run the workload once to warm up (a few tokens) and `rounds` times to measure.

    Before each round this process reads memory with all cores while the ranks rest.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (workload.batch_size, workload.prompt_tokens)
    prompts = torch.randint(engine.spec.vocab_size, shape, generator=generator).tolist()

    def run(tokens: int) -> Batch:
        sampling = SamplingSettings(max_tokens=tokens, ignore_eos=True)
        return engine.generate(prompts, [sampling] * workload.batch_size)

    ops.set_threads(cores())
    machine = Machine()
    run(2)
    reads: list[float] = []
    batches: list[Batch] = []
    for _ in range(workload.rounds):
        reads += [machine.bytes_per_second() for _ in range(READS)]
        batches.append(run(workload.new_tokens))
    step_s = statistics.median(s for batch in batches for s in batch.decode_s)
    ranks = [added(batch.rank_times[rank] for batch in batches) for rank in batches[0].rank_times]
    prefill_s = statistics.median(batch.prefill_s for batch in batches)
    bandwidth = statistics.median(reads)
    weights = sum(rank["step_bytes"] for rank in engine.ranks)
    return Throughput(
        decode_ms_per_step=step_s * 1000,
        decode_tokens_per_s=workload.batch_size / step_s,
        prefill_s=prefill_s,
        prefill_tokens_per_s=workload.batch_size * workload.prompt_tokens / prefill_s,
        weights_bytes=weights,
        read_bandwidth_gb_s=bandwidth / 1e9,
        bandwidth_share=weights / bandwidth / step_s,
        overhead_share=1 - max(rank.kernels_share for rank in ranks),
        collectives_share=max(rank.collectives_share for rank in ranks),
    )
