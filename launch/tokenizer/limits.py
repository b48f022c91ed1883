"""Bounds of CPU time and memory for the process in which tokenizers run."""

from __future__ import annotations

import resource
import sys

# Vocabularies of 256,000 tokens take 8 s and 0.9 GB on a slow core.
LOAD_CPU_S, LOAD_MEMORY_BYTES = 30, 1536 << 20
PAGE_BYTES = resource.getpagesize()


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Allow this much more CPU time and memory than this process has used and has now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime) + 1
    set_limit(resource.RLIMIT_CPU, spent + cpu_s)
    set_limit(resource.RLIMIT_AS, _address_space() + memory_bytes)


def set_limit(kind: int, value: int) -> None:
    """Set a soft limit of this process, no higher than its hard one."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most < 0 else min(value, most), most))


def _address_space() -> int:
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 -- no pathlib needed
        return int(file.read().split()[0]) * PAGE_BYTES
