"""Shared memory of attention and of what a step says, as the compiler takes it for two cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from isobit.kernels.gpu.architecture import ARCHITECTURES
from isobit.kernels.gpu.attention import most_columns, shared_bytes

from ..support import ROOT

# Triton cannot interpret and compile in one process.
COMPILE = """
import json, torch
from isobit.kernels.step.kv_cache import PAGE, KVCache
from tests.gpu.ahead_of_time.compile import compile_launch
from isobit.kernels.gpu.architecture import ARCHITECTURES
from isobit.kernels.gpu.attention import Chunks, Heads, attention_work
from isobit.kernels.gpu.linear import Work
from isobit.kernels.gpu.readout import step_launches

def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")

q, index, cache = empty(4, 20 * 256), empty(4, dtype=torch.int32), empty(9, 1, 256, PAGE)
heads = Heads.of([0] * 20, 1, "meta", 256)
chunks = Chunks(rows=empty(4, 2, dtype=torch.int32), columns=heads.columns[0], stretches=1)
launches = attention_work(
    q, KVCache(cache, cache.view(9, 1, PAGE, 256)), q, block_tables=index.view(1, 4),
    row_sequence=index, positions=index, heads=heads, chunks=chunks, scale=0.1,
).launches
words = empty(9, dtype=torch.int64)
launches += step_launches(
    empty(4, 5120, dtype=torch.float32), empty(96, 5120), empty(4, 5120),
    empty(4, 152064, dtype=torch.float32), words, words, Work(),
)
for capability in (86, 90):
    for launch in launches:
        made = compile_launch(launch, ARCHITECTURES[capability])
        name = launch.kernel.__name__
        print(json.dumps([capability, name, made.shared_bytes, made.spilling_loops]))
"""


@pytest.mark.timeout(300)
def test_large_heads_fit_where_shared_memory_is_least() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=280
    )
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert [name for _, name, _, _ in found] == ["attend", "read_lines", "finish_lines"] * 2
    assert not any(loops for *_, loops in found)
    for capability, name, used, _ in found:
        assert used <= ARCHITECTURES[capability].shared_bytes
        if name == "attend":
            pages = 2 if capability == 90 else 1
            assert used == shared_bytes(256, most_columns(256), pages)
