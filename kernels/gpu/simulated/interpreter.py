"""Triton's interpreter, made to say what the kernels rely on.

Its matrix product goes to BLAS, whose order of additions changes with the shape, and takes bfloat16
for integers. Here every element is one chain over k in float32, product by product: no matrix unit
adds like this, but, as there, an element's bits depend on its own row and column alone. So tests
can ask for equal bits where the kernels promise them. Inline assembly is run by `assembly`.
Besides, numpy 2.4 no longer takes an array of one element for a number, as bounds of loops are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle

from . import assembly, kept_types


def install(*, check_overflow: bool = False) -> None:
    """Replace the parts of the interpreter that are wrong or say nothing about bits.

    With `check_overflow` integers are added and multiplied a second time in 64 bits, and a kernel
    that leaves the range of its own raises AssertionError; it takes longer.
    """
    kept_types.install()
    builder: Any = InterpreterBuilder
    # Triton computes the check whenever it is asked to, and looks at it in debug mode alone.
    interpreter.interpreter_builder.options = InterpreterOptions(
        sanitize_overflow=check_overflow, debug=check_overflow
    )
    builder.create_assert = _assert
    builder.create_dot = _dot
    builder.create_fma = _fma
    builder.create_inline_asm = _inline_asm
    builder.cast_impl = _cast
    builder.create_si_to_fp = builder.create_ui_to_fp = _cast
    builder.create_fp_ext = builder.create_fp_trunc = _cast
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
    patch_language, patched = interpreter._patch_lang, set()

    def patch_once(function: Any) -> Any:
        """A function that a kernel calls finds patched what the kernel itself uses; to do it again
        takes milliseconds."""
        used = function.__globals__.values()
        modules = frozenset(one.__name__ for one in used if one is tl or one is tl.core)
        if modules in patched:
            return interpreter._LangPatchScope()
        scope = patch_language(function)
        patched.add(modules)
        restore = scope.restore

        def unpatch() -> None:
            patched.discard(modules)
            restore()

        scope.restore = unpatch
        return scope

    interpreter._patch_lang = patch_once


def _numbers(handle: TensorHandle) -> np.ndarray:
    """The values; bfloat16, which numpy lacks, as float32."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    wide = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return wide.bfloat16().view(torch.int16).numpy().view(np.uint16)


def _cast(_: Any, source: TensorHandle, wanted: Any) -> TensorHandle:
    values = _numbers(source)
    kind = wanted.scalar
    if kind == tl.bfloat16:
        return TensorHandle(_bfloat16(values), kind)
    return TensorHandle(values.astype(interpreter._get_np_dtype(wanted)), kind)


def _assert(_builder: Any, condition: TensorHandle, message: str) -> None:
    # Triton's own takes the handle for a truth, which it always is.
    if not condition.data.all():
        raise AssertionError(message)


def _dot(_: Any, a: TensorHandle, b: TensorHandle, start: TensorHandle, *__: Any) -> TensorHandle:
    number = start.data.dtype
    if number == np.int32:  # exact in any order
        total = a.data.astype(np.int32) @ b.data.astype(np.int32) + start.data
        return TensorHandle(total.astype(number), start.dtype.scalar)
    left, right = _numbers(a).astype(number), _numbers(b).astype(number)
    total = start.data.copy()
    for k in range(left.shape[1]):
        total += left[:, k, None] * right[None, k]
    return TensorHandle(total, start.dtype.scalar)


def _fma(_: Any, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    # A product of two float32 is exact in float64.
    total = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data
    return TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)


class _Results:
    """What an inline assembly gives, as the builder hands it on."""

    def __init__(self, handles: list[TensorHandle]) -> None:
        self.get_result = handles.__getitem__


def _inline_asm(
    _: Any,
    text: str,
    constraints: str,
    values: list[TensorHandle],
    types: list[Any],
    _pure: bool,
    pack: int,
) -> _Results:
    """Elements go through in pairs, as two registers of 32 bits or one of twice 16; or one by one,
    each a number of a thread."""
    if pack == 1:
        lanes = np.broadcast_arrays(*(value.data for value in values)) if values else [np.zeros(1)]
        inputs = list(zip(*(lane.reshape(-1).tolist() for lane in lanes), strict=True))
        # Most lanes have no peer, and do the same nothing.
        done = {each: assembly.run_on_memory(text, each if values else ()) for each in set(inputs)}
        out = [done[each] for each in inputs]
        number = np.array(out, interpreter._get_np_dtype(types[0]))
        return _Results([TensorHandle(number.reshape(lanes[0].shape), types[0].scalar)])
    assert pack == 2
    shape = values[0].data.shape
    registers = []
    for value in values:
        data = np.ascontiguousarray(value.data).reshape(-1)
        wide = data.dtype.itemsize == 4
        registers += (
            [data.view(np.uint32)[i::2] for i in (0, 1)] if wide else [data.view(np.uint32)]
        )
    outs = assembly.run(text, registers, constraints.count("="))
    numbers = [interpreter._get_np_dtype(kind) for kind in types]
    return _Results(
        [
            TensorHandle(out.view(number).reshape(shape), kind.scalar)
            for out, number, kind in zip(outs, numbers, types, strict=True)
        ]
    )
