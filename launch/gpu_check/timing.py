"""How long work on a GPU takes, by the GPU's own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

ROUNDS = 5
COPY_BYTES = 1 << 30


def graph_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Of one call: the fastest of a few replays of all of them, recorded as one CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:  # compiles what is not compiled yet
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for call in calls:
            call()
    return min(replay_seconds(graph) for _ in range(ROUNDS)) / len(calls)


def replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of the second of two replays."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy within the GPU reads and writes together."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / graph_seconds([lambda: target.copy_(source)] * 3)
