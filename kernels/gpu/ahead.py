"""Compiling launches for an architecture without its card, and what the machine code says."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .architecture import Architecture
from .launch import Launch

POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
MATRIX = re.compile(r"\b(?:HMMA|IMMA|HGMMA|IGMMA)\b")
MEETING = re.compile(r"\b(?:bar\.sync|[ls][dt]\.(?:acquire|release|volatile)[\w.]*)")
LOCAL = re.compile(r"\b(?:LDL|STL)\b")


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
    spilling_loops: int
    """Innermost loops with matrix instructions that touch local memory."""
    meeting_instructions: tuple[str, ...]
    """Distinct ones of the PTX by which programs of several devices meet: barriers, loads and
    stores that others see in order, loads that find no old copy."""
    gpu_ir: str
    """Triton's IR for GPUs (TTGIR)."""


def compile_launch(launch: Launch, architecture: Architecture) -> Compiled:
    """Compile for an architecture; tensors may lie on the meta device."""
    kernel = launch.kernel
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        kind, divisible = _kind(parameter, value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        elif divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    made: Any = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture.capability, 32),
        options={
            "num_warps": launch.warps,
            "num_stages": launch.stages,
            "enable_fp_fusion": False,
        },
    )
    ptx, ir = made.asm["ptx"], made.asm["ttgir"]
    usage, code = _machine_code(made.asm["cubin"])
    return Compiled(
        registers=_number(r"REG:(\d+)", usage),
        local_bytes=_number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
        shared_bytes=made.metadata.shared,
        matrix_instructions=tuple(
            sorted(set(re.findall(r"(?:mma\.sync|wgmma\.mma_async)\.[\w.:]+", ptx)))
        ),
        operand_widths=tuple(sorted({int(width) for width in re.findall(r"kWidth = (\d+)", ir)})),
        spilling_loops=sum(
            any(map(MATRIX.search, loop)) and any(map(LOCAL.search, loop))
            for loop in innermost_loops(code)
        ),
        meeting_instructions=tuple(sorted(set(MEETING.findall(ptx)))),
        gpu_ir=ir,
    )


def _kind(parameter: Any, value: Any) -> tuple[str, bool]:
    """A type, and whether 16 divides it, as Triton finds them when it starts a kernel."""
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    width = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
    if parameter.do_not_specialize:
        return width, False
    return ("constexpr", False) if value == 1 else (width, value % 16 == 0)


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
