"""The PTX instructions that the kernels' inline assembly uses, on numpy arrays of registers, and
those on memory that other processes see."""

from __future__ import annotations

import ctypes
import functools
import re
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch


def run(text: str, inputs: Sequence[np.ndarray], outputs: int) -> list[np.ndarray]:
    """Run a text over registers: `inputs` uint32 `[elements]` are $outputs, $outputs + 1, ..."""
    registers = {f"${outputs + i}": one for i, one in enumerate(inputs)}
    for line in re.findall(r"[^;{}\n]+", text):
        name, _, rest = line.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *sources = [part.strip() for part in rest.split(",")]
        values = [
            registers[source] if source in registers else np.uint32(int(source, 0))
            for source in sources
        ]
        registers[target] = INSTRUCTIONS[name](*values)
    return [registers[f"${i}"] for i in range(outputs)]


@functools.cache
def _lines(text: str) -> list[tuple[str, str, str, list[str]]]:
    """Of each instruction the register that has to be true or "", name, target, sources."""
    lines = []
    for line in filter(None, map(str.strip, text.strip("{} ").split(";"))):
        guard, _, rest = line[1:].partition(" ") if line[0] == "@" else ("", "", line)
        name, _, rest = rest.strip().partition(" ")
        target, *sources = [part.strip() for part in rest.split(",")]
        if name != ".reg":
            lines.append((guard, name, target, sources))
    return lines


def run_on_memory(text: str, inputs: Sequence[int]) -> int:
    """Run loads, stores, fences, reads of the clock of one thread of the first warp: `inputs` are
    $1, $2, ...; gives $0."""
    registers: dict[str, int] = {f"${i}": value for i, value in enumerate(inputs, 1)}

    def value(source: str) -> int:
        return registers[source] if source in registers else int(source)

    for guard, name, target, sources in _lines(text):
        if guard and not registers[guard]:
            continue
        match name, sources:
            case "fence.acq_rel.sys", []:
                pass  # Processes of one host see each other's stores in order.
            case "st.relaxed.sys.global.b64", [source]:
                ctypes.c_int64.from_address(registers[target.strip("[]")]).value = value(source)
            case "ld.acquire.sys.global.b64", [source]:
                place = registers[source.strip("[]")]
                registers[target] = ctypes.c_int64.from_address(place).value
            case "mov.u64", ["%globaltimer"]:
                # Asked while waiting for another process, which may need the core.
                time.sleep(1e-3)
                registers[target] = time.monotonic_ns()
            case "mov.u32", ["%tid.x"]:
                registers[target] = 0
            case "mov.b32" | "mov.b64", [source]:
                registers[target] = value(source)
            case "setp.lt.u32", [left, right]:
                registers[target] = value(left) < value(right)
            case "setp.ne.and.s64", [left, right, other]:
                registers[target] = value(left) != value(right) and value(other)
            case _:
                raise AssertionError(name)
    return registers["$0"]


def _choose_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    sources = [(one >> np.uint32(8 * i)) & np.uint32(0xFF) for one in (a, b) for i in range(4)]
    out = np.zeros_like(a)
    for i in range(4):
        out = out | (sources[(int(selector) >> (4 * i)) & 0xF] << np.uint32(8 * i))
    return out


def _lookup(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    out = np.zeros_like(a)
    for case in range(8):
        if int(table) >> case & 1:
            chosen = [one if case >> bit & 1 else ~one for one, bit in ((a, 2), (b, 1), (c, 0))]
            out = out | (chosen[0] & chosen[1] & chosen[2])
    return out


def _halves(value: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The low and the high half as float64 `[..., 2]`."""
    words = np.atleast_1d(np.asarray(value, dtype=np.uint32))
    return torch.from_numpy(words.view(np.int16).copy()).view(dtype).double().view(-1, 2)


def _packed(value: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    return value.to(dtype).view(torch.int16).numpy().reshape(-1).copy().view(np.uint32)


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    x, y, z = (_halves(one, torch.bfloat16) for one in (a, b, c))
    return _packed(x * y + z, torch.bfloat16)


def _add_halves(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _packed(_halves(a, torch.float16) + _halves(b, torch.float16), torch.float16)


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.view(np.float32) + b.view(np.float32)).view(np.uint32)


def _narrow(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    pair = np.stack([low.view(np.float32), high.view(np.float32)], axis=-1)
    return _packed(torch.from_numpy(pair), torch.bfloat16)


INSTRUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "prmt.b32": _choose_bytes,
    "shr.u32": lambda a, count: a >> count,
    "lop3.b32": _lookup,
    "fma.rn.bf16x2": _multiply_add,
    "add.rn.f16x2": _add_halves,
    "add.rn.f32": _add,
    "cvt.rn.bf16x2.f32": _narrow,
}
