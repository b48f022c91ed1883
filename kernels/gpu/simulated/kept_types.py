"""Types of blocks that Triton's interpreter makes anew for every value, kept.

An interpreted kernel makes a type, a shape and a name for every operand of every operation, which
takes most of its time. They depend on the element's type and on numbers alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton.language as tl
from triton._utils import validate_block_shape
from triton.language.core import _unwrap_shape
from triton.runtime import interpreter


def install() -> None:
    """Replace what makes types in the interpreter; twice is as once."""
    block_type: Any = tl.block_type
    tensor: Any = tl.tensor
    block_type.__init__ = _make_block_type
    tensor.__init__ = _make_tensor
    interpreter._get_np_dtype = _numpy_type


def _make_block_type(self: Any, element_ty: Any, shape: Sequence[Any]) -> None:
    sizes = tuple(shape)
    if any(type(one) is not int for one in sizes):
        sizes = tuple(_unwrap_shape(shape))
    self.element_ty = element_ty
    self.shape, self.numel, self.name = _block(sizes, element_ty.name)


@functools.cache
def _block(sizes: tuple[int, ...], element: str) -> tuple[Any, int, str]:
    """Nothing changes a shape: all blocks of one may share it."""
    if not sizes:
        raise TypeError("a block has at least one dimension")
    return tl.tuple(sizes), validate_block_shape(list(sizes)), f"<{sizes}, {element}>"


def _make_tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle = handle
    self.type = type
    self.dtype = type.scalar
    self.shape, self.numel = _constants(tuple(type.shape) if type.is_block() else ())


@functools.cache
def _constants(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    return tl.tuple([tl.constexpr(one) for one in sizes]), tl.constexpr(math.prod(sizes))


_to_numpy = interpreter._get_np_dtype


def _numpy_type(kind: Any) -> np.dtype[Any]:
    scalar = kind.scalar
    return np.dtype(np.uint64) if scalar.is_ptr() else _numpy_type_of(scalar)


@functools.cache
def _numpy_type_of(scalar: Any) -> np.dtype[Any]:
    return _to_numpy(scalar)
