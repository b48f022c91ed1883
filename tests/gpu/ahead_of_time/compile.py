"""Compiling launches for an architecture without its card, and what the machine code says.

Launches go through Triton's own JIT, which looks at the arguments of each: a number that is 1
becomes a constant, and so does None; numbers and addresses that 16 divides are known to be so.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from isobit.kernels.gpu.architecture import Architecture
from isobit.kernels.gpu.launch import Launch

MATRIX = re.compile(r"\b(?:HMMA|IMMA|HGMMA|IGMMA)\b")
FENCE = re.compile(r"\bMEMBAR\b")
MEETING = re.compile(
    r"\b(?:bar\.sync|fence\.acq_rel\.sys|[ls][dt]\.(?:acquire|release|relaxed|volatile)[\w.]*)"
)
LOCAL = re.compile(r"\b(?:LDL|STL)\b")
LAYOUT = re.compile(r"#ttg\.nvidia_mma<\{.*?warpsPerCTA = \[\d+, (\d+)\]")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What is known of a kernel before it ever ran."""

    registers: int
    local_bytes: int
    """Per thread, for what the registers do not hold."""
    shared_bytes: int
    matrix_instructions: tuple[str, ...]
    """Distinct ones of the PTX, as mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32."""
    operand_widths: tuple[int, ...]
    """How many neighbours along k a thread hands to the matrix unit at once: part of the order in
    which products are added."""
    loop_instructions: int
    """Instructions of the longest innermost loop with matrix instructions, which a warp issues for
    each round; 0 without such a loop."""
    unpacked: int
    """Warps of a block that hold the same part of the first operand, hence unpack it each; 0
    without matrix instructions."""
    spilling_loops: int
    """Innermost loops with matrix instructions that touch local memory."""
    meeting_instructions: tuple[str, ...]
    """Distinct ones of the PTX by which programs of several devices meet: barriers, fences, loads
    and stores that others see in order, loads that find no old copy."""
    fences: int
    """Memory barriers in the machine code."""
    gpu_ir: str
    """Triton's IR for GPUs (TTGIR)."""


class AbsentCard:
    """What Triton's JIT asks of a card in order to compile for it."""

    def __init__(self) -> None:
        self.capability = 0

    def get_current_device(self) -> int:
        """The JIT keeps what it compiled by this number."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """None: nothing is started."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """The card to compile for."""
        return GPUTarget("cuda", self.capability, 32)


_ABSENT: Any = AbsentCard()


def compile_launch(launch: Launch, architecture: Architecture) -> Compiled:
    """Compile for an architecture; tensors may lie on the meta device."""
    _ABSENT.capability = architecture.capability
    driver.set_active(_ABSENT)
    made = launch.compile()
    ptx, ir = made.asm["ptx"], made.asm["ttgir"]
    usage, code = _machine_code(made.asm["cubin"])
    loops = [loop for loop in innermost_loops(code) if any(map(MATRIX.search, loop))]
    return Compiled(
        registers=_number(r"REG:(\d+)", usage),
        local_bytes=_number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
        shared_bytes=made.metadata.shared,
        matrix_instructions=tuple(
            sorted(set(re.findall(r"(?:mma\.sync|wgmma\.mma_async)\.[\w.:]+", ptx)))
        ),
        operand_widths=tuple(sorted({int(width) for width in re.findall(r"kWidth = (\d+)", ir)})),
        loop_instructions=max(map(len, loops), default=0),
        unpacked=max((int(warps) for warps in LAYOUT.findall(ir)), default=0),
        spilling_loops=sum(any(map(LOCAL.search, loop)) for loop in loops),
        meeting_instructions=tuple(sorted(set(MEETING.findall(ptx)))),
        fences=len(FENCE.findall(code)),
        gpu_ir=ir,
    )


def _machine_code(cubin: bytes) -> tuple[str, str]:
    """How much the kernel uses, and its instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        return usage, _run(knobs.nvidia.nvdisasm.path, "-c", file.name)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text!r}"
    return int(found[1])


def innermost_loops(code: str) -> Iterator[list[str]]:
    """The instructions of every loop of a disassembly that has no other within."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    loops = []
    for end, instruction in enumerate(instructions):
        branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction)
        if branch and labels.get(branch[1], end + 1) < end:
            loops.append((labels[branch[1]], end))
    for begin, end in loops:
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops):
            yield instructions[begin : end + 1]
