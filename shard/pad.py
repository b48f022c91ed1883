"""A padded copy of a checkpoint, for isobit and for any other engine.

A padded feature contributes nothing: its codes are the zero point, its scale is 1, its bias 0.
As Qwen did for Qwen1.5-14B, 13696 -> 14336.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.errors import InputError, NotSupportedError

from .checkpoint.checkpoint import Checkpoint, open_checkpoint
from .checkpoint.safetensors_file import SliceReader
from .checkpoint.settings import read_config
from .checkpoint.writer import FolderWriter
from .contents.expected_tensors import stored_intermediate_size
from .contents.stored_head import with_stored_head
from .formats import PACKERS, quantized_format
from .formats.codes import WholeWeight, group_index, grown
from .formats.scheme import WeightScheme
from .load.validate import check_checkpoint
from .model.spec import ModelSpec, read_spec
from .plan.modules import LinearModule, embedding_module, head_module, layer_modules
from .plan.plan import PlanSettings, make_plan


@dataclass(frozen=True, kw_only=True)
class PadSettings:
    """`intermediate_size` 0 takes what the plan for `atoms` pads to; `vocab` pads that as well."""

    atoms: int = 8
    intermediate_size: int = 0
    vocab: bool = False


@dataclass(frozen=True, kw_only=True)
class PadReport:
    """Sizes before and after, in elements, and the bytes written."""

    intermediate: tuple[int, int]
    vocab: tuple[int, int]
    written_bytes: int


def pad_folder(
    model: Path,
    out: Path,
    settings: PadSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PadReport:
    """Write a padded copy of a model folder, one weight at a time.

    `progress(done, total)` counts modules. Raises InputError E-PAD-SIZE, E-PAD-FORMAT,
    E-OUT-EXISTS, and what reading and planning raise.
    """
    spec, config = read_spec(model), read_config(model)
    checkpoint = open_checkpoint(model)
    stored = with_stored_head(spec, checkpoint)
    if stored.tied_embeddings != spec.tied_embeddings:
        config = {**config, "tie_word_embeddings": False}
    spec = stored
    plan = make_plan(spec, PlanSettings(atoms=settings.atoms), stored_intermediate_size(checkpoint))
    check_checkpoint(checkpoint, spec)
    wide = settings.intermediate_size or plan.intermediate.padded
    _check_size(spec, wide, plan.intermediate.unit)
    vocab = plan.vocab.padded if settings.vocab else spec.vocab_size
    note = f"padded intermediate_size {spec.intermediate_size} -> {wide}"
    if vocab != spec.vocab_size:
        note += f", vocab_size {spec.vocab_size} -> {vocab}"
    with SliceReader() as reader, FolderWriter(out, note) as writer:
        jobs = _Padder(checkpoint, reader, spec, wide, vocab).jobs()
        for done, job in enumerate(jobs):
            progress(done, len(jobs))
            for name, tensor in job().items():
                writer.add(name, tensor)
        changed = {**config, "intermediate_size": wide, "vocab_size": vocab}
        written = writer.finish(changed, model)
        progress(len(jobs), len(jobs))
    return PadReport(
        intermediate=(spec.intermediate_size, wide),
        vocab=(spec.vocab_size, vocab),
        written_bytes=written,
    )


def _check_size(spec: ModelSpec, wide: int, unit: int) -> None:
    if wide < spec.intermediate_size or wide % unit:
        least = -(-spec.intermediate_size // unit) * unit
        raise InputError(
            "E-PAD-SIZE",
            f"intermediate size {wide} must be a multiple of {unit} and at least {least}",
        )
    refused = sorted(
        {
            scheme.format
            for layer in range(spec.layers)
            for module in layer_modules(spec, layer).values()
            if (scheme := _scheme(spec, module)) is not None and scheme.format not in PACKERS
        }
    )
    if refused:
        raise NotSupportedError(
            "E-PAD-FORMAT",
            f"{', '.join(refused)} cannot be padded. Can be: dense, {', '.join(PACKERS)}",
        )


def _scheme(spec: ModelSpec, module: LinearModule) -> WeightScheme | None:
    return spec.scheme(module.name)


class _Padder:
    """Makes the tensors of the padded checkpoint, module by module."""

    def __init__(
        self, checkpoint: Checkpoint, reader: SliceReader, spec: ModelSpec, wide: int, vocab: int
    ) -> None:
        self.checkpoint, self.reader, self.spec = checkpoint, reader, spec
        self.wide, self.vocab = wide, vocab

    def jobs(self) -> list[Callable[[], dict[str, torch.Tensor]]]:
        """One job per padded module, and one per tensor that stays as it is."""
        jobs: list[Callable[[], dict[str, torch.Tensor]]] = []
        taken: set[str] = set()
        for module in self._modules():
            names = [n for n in self.checkpoint.entries if n.startswith(module.name + ".")]
            taken.update(names)
            jobs.append(lambda module=module: self._module(module))
        for name in self.checkpoint.entries:
            if name not in taken:
                jobs.append(lambda name=name: {name: self._read(name)})
        return jobs

    def _modules(self) -> list[LinearModule]:
        modules = [
            layer_modules(self.spec, layer)[name]
            for layer in range(self.spec.layers)
            for name in ("gate", "up", "down")
        ]
        if self.vocab != self.spec.vocab_size:
            modules.append(head_module(self.spec))
            if not self.spec.tied_embeddings:
                modules.append(embedding_module(self.spec))
        return modules

    def _module(self, module: LinearModule) -> dict[str, torch.Tensor]:
        size = self.vocab if module.dimension == "vocab" else self.wide
        n, k = (size, module.k) if module.parallel == "column" else (module.n, size)
        scheme = _scheme(self.spec, module)
        tensors: dict[str, torch.Tensor] = {}
        if module.bias:
            bias = self._read(f"{module.name}.bias")
            tensors[f"{module.name}.bias"] = grown(bias[:, None], (n, 1), 0)[:, 0]
        if scheme is None:
            name = f"{module.name}.weight"
            return {**tensors, name: grown(self._read(name), (n, k), 0)}
        weight = padded_weight(self._whole(module, scheme), scheme, n, k)
        return {**tensors, **PACKERS[scheme.format](module.name, weight, scheme)}

    def _whole(self, module: LinearModule, scheme: WeightScheme) -> WholeWeight:
        form = quantized_format(scheme.format)
        piece = form.read_slice(
            self.checkpoint,
            self.reader,
            module.name,
            scheme,
            slice(0, module.n),
            slice(0, module.k),
        )
        g_idx = None
        if form.GROUP_INDEX is not None:
            entry = self.checkpoint.entries.get(f"{module.name}.{form.GROUP_INDEX}")
            g_idx = group_index(self.reader, entry, scheme)
        return WholeWeight(
            codes=piece.codes,
            scales=piece.scales,
            zeros=piece.zeros,
            g_idx=g_idx,
            input_scale=piece.input_scale,
        )

    def _read(self, name: str) -> torch.Tensor:
        return self.reader.read(self.checkpoint.entries[name])


def padded_weight(weight: WholeWeight, scheme: WeightScheme, n: int, k: int) -> WholeWeight:
    """Grow a weight to [n, k]: new codes are zero points, new groups have scale 1.

    A last group that is not full, or the only one of an output row, covers new features too.
    """
    old_k = weight.codes.shape[1]
    middle, groups = 1 << (scheme.bits - 1), scheme.groups(k)
    zeros = None if weight.zeros is None else grown(weight.zeros, (n, groups), middle)
    codes = grown(weight.codes, (n, k), middle)
    added = torch.arange(old_k, k) // scheme.group_width(k)
    if zeros is not None:
        codes[:, old_k:] = zeros[:, added]
    g_idx = weight.g_idx
    if g_idx is not None:
        g_idx = torch.cat((g_idx, added.int()))
    return WholeWeight(
        codes=codes,
        scales=grown(weight.scales, (n, groups), 1),
        zeros=zeros,
        g_idx=g_idx,
        input_scale=weight.input_scale,
    )
