"""The paged KV cache of one layer on one rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isobit.errors import InputError

PAGE = 64
MAX_HEAD = 512


@dataclass(frozen=True)
class KVCache:
    """Pages of 64 positions: slot = page * 64 + offset.

    keys: `[pages, Hkv, D, 64]`, transposed so that a vector holds one feature of many keys.
    values: `[pages, Hkv, 64, D]`. Both bf16, fp16 or fp32, the dtype of the model.
    Raises InputError E-KERNEL-CACHE when they do not fit each other.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        keys, values = self.keys, self.values
        fits = (
            keys.dim() == 4
            and keys.shape[3] == PAGE
            and values.shape == (*keys.shape[:2], PAGE, keys.shape[2])
            and keys.dtype == values.dtype
            and keys.dtype in (torch.float32, torch.float16, torch.bfloat16)
            and keys.is_contiguous()
            and values.is_contiguous()
            and keys.shape[2] <= MAX_HEAD
        )
        if not fits:
            raise InputError(
                "E-KERNEL-CACHE",
                f"keys {keys.dtype} {tuple(keys.shape)} and values {values.dtype} "
                f"{tuple(values.shape)}; wanted contiguous [pages, Hkv, D, {PAGE}] and "
                f"[pages, Hkv, {PAGE}, D] of one floating dtype, D up to {MAX_HEAD}",
            )

    @classmethod
    def allocate(
        cls,
        pages: int,
        kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> KVCache:
        """A cache with nothing in it, on `device` (default: the CPU): no op reads a slot that was
        not written."""
        return cls(
            torch.empty(pages, kv_heads, head_size, PAGE, dtype=dtype, device=device),
            torch.empty(pages, kv_heads, PAGE, head_size, dtype=dtype, device=device),
        )

    @property
    def pages(self) -> int:
        return self.keys.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1]

    @property
    def head_size(self) -> int:
        return self.keys.shape[2]

    def keys_at(self, slots: torch.Tensor) -> torch.Tensor:
        """A copy of the keys `[M, Hkv * D]` in slots int64 `[M]`."""
        return self.keys[slots // PAGE, :, :, slots % PAGE].flatten(1)

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes
