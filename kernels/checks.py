"""What ops ask of their tensors before anything runs. All offenders are named at once."""

from __future__ import annotations

import torch

from isobit.errors import InputError

CPU = torch.device("cpu")
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Checks:
    """Collects what is wrong with the arguments of one op; `done` raises it as E-KERNEL-SHAPE."""

    def __init__(self, op: str, device: torch.device | None = None) -> None:
        """Tensors must lie on `device`; left out, on the CPU."""
        self.op = op
        self.device = device or CPU
        self.wrong: list[str] = []

    def tensor(
        self,
        name: str,
        tensor: torch.Tensor,
        shape: tuple[int | None, ...],
        *dtypes: torch.dtype,
        on: torch.device | None = None,
    ) -> None:
        """None in `shape` accepts any length; no dtypes accepts fp32, fp16 and bf16. `on` is for
        what lies elsewhere than the rest."""
        device = on or self.device
        wanted = dtypes or tuple(NUMBERS)
        fits = tensor.dim() == len(shape) and all(
            want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
        )
        plain = tensor.is_contiguous() and tensor.device == device
        if fits and plain and tensor.dtype in wanted:
            return
        kinds = " or ".join(_short(dtype) for dtype in wanted)
        sizes = ", ".join("*" if size is None else str(size) for size in shape)
        strides = "" if tensor.is_contiguous() else " with strides"
        self.wrong.append(
            f"{name} is {_short(tensor.dtype)} {list(tensor.shape)}{strides} on {tensor.device}; "
            f"it must be contiguous {kinds} [{sizes}] on {device}"
        )

    def that(self, holds: bool, message: str) -> None:
        if not holds:
            self.wrong.append(message)

    def done(self) -> None:
        if self.wrong:
            raise InputError("E-KERNEL-SHAPE", "\n".join(f"{self.op}: {w}" for w in self.wrong))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
