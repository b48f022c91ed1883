"""Codes of 4 or 8 bits out of 32-bit words, as integers that bf16 and fp16 hold exactly.

All words of a chunk (see `weight`) at one nibble or byte are a plane. A unit, one or more planes,
is unpacked at once: one scale and one zero point belong to it.

In assembly two words give pairs of codes side by side; a mask and an exponent around a code make a
float of it that is off by 128, 1024 or 2^23, and one addition of minus that and minus the zero
point leaves the integer. Every step is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton.language as tl

CHUNK = 128
UNITS = (32, 64, 128)

_NIBBLES = """    prmt.b32 pair, {w0}, {w1}, {half};
    shr.u32 pair, pair, {shift};
    lop3.b32 pair, pair, 0x000f000f, {exponent}, 0xea;
    {add}"""
_BYTES_FP16 = """    prmt.b32 pair, {w0}, {w1}, {bytes};
    lop3.b32 pair, pair, 0x00ff00ff, 0x64006400, 0xea;
    add.rn.f16x2 {out}, pair, {n0};"""
_BYTES_BF16 = """    prmt.b32 pair, {w0}, 0x4b000000, {select};
    mov.b32 a, pair;
    add.rn.f32 a, a, {n0};
    prmt.b32 pair, {w1}, 0x4b000000, {select};
    mov.b32 b, pair;
    add.rn.f32 b, b, {n1};
    cvt.rn.bf16x2.f32 {out}, b, a;"""


@dataclass(frozen=True, kw_only=True)
class Unpacking:
    """How a kernel unpacks the planes of one unit; the fields are constants of the kernel.

    `assembly` has one text for each unit of a chunk.
    """

    assembly: tuple[str, ...]
    constraints: str
    types: tuple[tl.dtype, ...]
    base: float
    number: tl.dtype


def unpacking(bits: int, unit: int, dtype: tl.dtype) -> Unpacking:
    """For 4- or 8-bit codes under activations of `dtype` (tl.bfloat16 or tl.float16)."""
    per = unit // (4 * bits)
    wide = bits == 8 and dtype == tl.bfloat16
    texts = []
    for first in range(0, 32 // bits, per):
        lines = [_plane(bits, dtype, first + i, i, per, wide) for i in range(per)]
        body = "\n".join(lines)
        texts.append("{\n    .reg .b32 pair, one;\n    .reg .f32 a, b;\n" + body + "\n}")
    return Unpacking(
        assembly=tuple(texts),
        constraints=",".join(["=r"] * per + ["r", "r"] + (["f", "f"] if wide else ["r"])),
        types=(dtype,) * per,
        base=2.0**23 if wide else 128.0 if dtype == tl.bfloat16 else 1024.0,
        number=tl.float32 if wide else dtype,
    )


def _plane(bits: int, dtype: tl.dtype, plane: int, out: int, outs: int, wide: bool) -> str:
    names = {"out": f"${out}", "w0": f"${outs}", "w1": f"${outs + 1}"}
    names |= {"n0": f"${outs + 2}", "n1": f"${outs + 3}"}
    if wide:
        return _BYTES_BF16.format(select=f"0x744{plane}", **names)
    if bits == 8:
        return _BYTES_FP16.format(bytes=f"0x{plane + 4}{plane + 4}{plane}{plane}", **names)
    bf16 = dtype == tl.bfloat16
    one = "mov.b32 one, 0x3f803f80; fma.rn.bf16x2 {out}, pair, one, {n0};"
    return _NIBBLES.format(
        half="0x5410" if plane < 4 else "0x7632",
        shift=plane % 4 * 4,
        exponent="0x43004300" if bf16 else "0x64006400",
        add=(one if bf16 else "add.rn.f16x2 {out}, pair, {n0};").format(**names),
        **names,
    )
