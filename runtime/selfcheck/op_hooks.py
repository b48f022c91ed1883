"""Recording a look at each operation into a forward pass; nothing where nobody looks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...kernels.program.program import AnyProgram
from ...kernels.step.buffer import Buffer
from ...kernels.step.kv_cache import KVCache
from ...shard.model.spec import ModelSpec
from .op_check import OpCheck


class OpHooks:
    """Each method goes behind the recorded operation of its name, `before_norm` in front of it."""

    def __init__(self, program: AnyProgram, check: OpCheck | None) -> None:
        self._program, self._check = program, check
        self._rows = program.rows_of

    def before_norm(self, hidden: Buffer, root: Buffer | None) -> None:
        self._look(
            lambda check: check.before_norm(
                self._rows(hidden), None if root is None else self._rows(root)
            )
        )

    def joined(self, name: str, hidden: Buffer, bias: torch.Tensor | None) -> None:
        self._look(lambda check: check.joined(name, self._rows(hidden), bias))

    def norm(self, name: str, x: Buffer, weight: torch.Tensor, eps: float, out: Buffer) -> None:
        self._look(lambda check: check.norm(name, self._rows(x), weight, eps, self._rows(out)))

    def rope(
        self,
        name: str,
        q: Buffer,
        out: Buffer,
        tables: tuple[torch.Tensor, torch.Tensor],
        norm: torch.Tensor | None,
        spec: ModelSpec,
    ) -> None:
        self._look(
            lambda check: check.rope(
                name,
                self._rows(q),
                self._rows(out),
                tables,
                (norm, spec.norm_eps),
                self._program.step,
                spec.head_size,
            )
        )

    def attention(
        self,
        name: str,
        q: Buffer,
        cache: KVCache,
        out: Buffer,
        head_to_kv: torch.Tensor,
        window: int,
    ) -> None:
        self._look(
            lambda check: check.attention(
                name,
                self._rows(q),
                cache,
                self._rows(out),
                self._program.step,
                head_to_kv,
                window,
            )
        )

    def silu_mul(self, name: str, gate: Buffer, up: Buffer, out: Buffer) -> None:
        self._look(
            lambda check: check.silu_mul(name, self._rows(gate), self._rows(up), self._rows(out))
        )

    def _look(self, look: Callable[[OpCheck], None]) -> None:
        if (check := self._check) is not None:
            self._program.call(lambda: look(check))
