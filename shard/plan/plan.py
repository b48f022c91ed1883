"""The sharding plan: one frozen record of integers and names that everything else obeys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from isobit.errors import InputError, NotSupportedError

from ..model.spec import ModelSpec
from .atoms import atoms_of_rank, offsets, pad_atoms, ragged_atoms

Layout = Literal["pad", "ragged"]
VOCAB_UNIT = 64
DENSE_UNIT = 32
MOST_ATOMS = 64


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a user may choose about a plan."""

    degree: int = 1
    atoms: int = 8
    layout: Layout = "pad"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A rank's consecutive piece of a dimension, in elements of the padded dimension.

    `true` of its `size` elements exist in the checkpoint, the rest (at its end) is padding.
    """

    offset: int
    size: int
    true: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A sharded dimension: its true and padded size, the unit it is cut in, and its atoms."""

    true: int
    padded: int
    unit: int
    atom_sizes: tuple[int, ...]

    def atom_offsets(self) -> list[int]:
        return offsets(self.atom_sizes)

    def owned_ends(self, atoms: range, width: int = 1) -> list[int]:
        """Ends of a run of atoms relative to its begin, in features of `width` to the unit."""
        at = self.atom_offsets()[atoms.start : atoms.stop + 1]
        return [(offset - at[0]) * width for offset in at]

    def slice(self, atoms: range) -> Slice:
        """The piece that a run of atoms covers."""
        at = self.atom_offsets()
        begin, end = at[atoms.start], at[atoms.stop]
        return Slice(offset=begin, size=end - begin, true=max(0, min(end, self.true) - begin))


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Who owns which piece of a model. Dimensions: "intermediate", "heads", "vocab".

    `heads` counts query heads; `queries_per_kv` says how many of them read one KV head.
    `rotary_variant` is "" for all models but those whose rotary factors were chosen by length.
    """

    degree: int
    atoms: int
    layout: Layout
    intermediate: Dimension
    heads: Dimension
    vocab: Dimension
    head_size: int
    queries_per_kv: int
    rotary_variant: str = ""

    def owned(self, rank: int) -> range:
        return atoms_of_rank(self.atoms, self.degree, rank)

    def kv_heads(self, rank: int) -> range:
        """The KV heads that a rank's query heads read; a neighbour may keep some of them too."""
        queries = self.heads.slice(self.owned(rank))
        if not queries.size:
            return range(0)
        return range(
            queries.offset // self.queries_per_kv, (queries.end - 1) // self.queries_per_kv + 1
        )

    def head_to_kv(self, rank: int) -> list[int]:
        """For each query head of a rank, the index of its KV head among those the rank keeps."""
        queries, kept = self.heads.slice(self.owned(rank)), self.kv_heads(rank)
        return [
            head // self.queries_per_kv - kept.start for head in range(queries.offset, queries.end)
        ]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> ShardPlan:
        """Inverse of to_dict, also after a trip through JSON or msgpack (tuples become lists)."""
        dimensions = {
            name: Dimension(**{**value[name], "atom_sizes": tuple(value[name]["atom_sizes"])})
            for name in ("intermediate", "heads", "vocab")
        }
        return ShardPlan(**{**value, **dimensions})

    def content_hash(self) -> str:
        """A hash of everything in the plan: 16 hexadecimal digits."""
        content = self.to_dict()
        if not self.rotary_variant:
            # Plans of all other models keep the hash that they had before there were variants.
            del content["rotary_variant"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def report(self) -> dict[str, Any]:
        """The plan as `isobit plan --json` prints it."""
        dims = {}
        for name in ("intermediate", "heads", "vocab"):
            dimension: Dimension = getattr(self, name)
            dims[name] = {
                **dataclasses.asdict(dimension),
                "per_rank": [dimension.slice(self.owned(rank)).size for rank in range(self.degree)],
            }
        return {
            "tp": self.degree,
            "atoms": self.atoms,
            "layout": self.layout,
            "dims": dims,
            "hash": self.content_hash(),
        }


def make_plan(spec: ModelSpec, settings: PlanSettings, tensors_say: int | None = None) -> ShardPlan:
    """Cut a model for `settings.degree` ranks.

    `tensors_say` is the intermediate size found in the checkpoint. A last group that is shorter
    than the others is accepted only when the tensors have it: in a config alone it is more likely
    a size that somebody typed.

    Raises InputError E-PLAN-DEGREE, E-PLAN-ATOMS, E-PLAN-LAYOUT for the settings, E-PLAN-GROUP
    when a quantization group does not divide the intermediate dimension.
    """
    check_settings(settings)
    cut = pad_atoms if settings.layout == "pad" else ragged_atoms
    atoms, intermediate = settings.atoms, spec.intermediate_size
    unit = _group_unit(spec, tensors_say)
    if unit is None:
        unit = DENSE_UNIT if settings.layout == "pad" else math.gcd(DENSE_UNIT, intermediate)
    return ShardPlan(
        degree=settings.degree,
        atoms=atoms,
        layout=settings.layout,
        intermediate=_dimension(intermediate, unit, cut(intermediate, unit, atoms)),
        heads=_dimension(spec.heads, 1, ragged_atoms(spec.heads, 1, atoms)),
        vocab=_dimension(
            spec.vocab_size, VOCAB_UNIT, pad_atoms(spec.vocab_size, VOCAB_UNIT, atoms)
        ),
        head_size=spec.head_size,
        queries_per_kv=spec.heads // spec.kv_heads,
        rotary_variant=spec.rotary.variant,
    )


def check_settings(settings: PlanSettings) -> None:
    """Raise InputError for a degree, a number of atoms or a layout that no plan can have."""
    atoms, degree = settings.atoms, settings.degree
    if atoms < 1 or atoms > MOST_ATOMS or atoms & (atoms - 1):
        raise InputError(
            "E-PLAN-ATOMS",
            f"atoms {atoms} is not a power of two from 1 to {MOST_ATOMS}: the tree of additions "
            "is a balanced binary tree over the atoms",
        )
    if not 1 <= degree <= atoms:
        raise InputError(
            "E-PLAN-DEGREE",
            f"tensor-parallel size {degree} is not between 1 and {atoms}, the number of atoms. "
            + (
                f"Choose a smaller size, or --atoms {1 << (degree - 1).bit_length()}"
                if atoms < degree <= MOST_ATOMS
                else "Choose a size in that range"
            ),
        )
    if settings.layout not in ("pad", "ragged"):
        raise InputError("E-PLAN-LAYOUT", f"layout {settings.layout!r}: expected 'pad' or 'ragged'")


def _group_unit(spec: ModelSpec, tensors_say: int | None) -> int | None:
    """The group size that binds the cut of intermediate_size; None when no layer has groups.

    A per-channel scale spans the whole row and binds nothing.
    """
    if spec.quantization is None:
        return None
    schemes = [
        spec.quantization.scheme(f"model.layers.{layer}.mlp.down_proj")
        for layer in range(spec.layers)
    ]
    sizes = sorted({s.bound_group for s in schemes if s is not None and s.bound_group})
    if not sizes:
        return None
    unit, intermediate = sizes[-1], spec.intermediate_size
    if odd := [size for size in sizes if unit % size]:
        legal = [size for size in range(unit, 7, -1) if unit % size == 0][:4]
        raise NotSupportedError(
            "E-PLAN-GROUP",
            f"layers.*.mlp.down_proj: group sizes {', '.join(map(str, sizes))} are mixed and "
            f"{unit} is not a multiple of {', '.join(map(str, odd))}. Quantize those layers again "
            f"with a group size that divides {unit}: {', '.join(map(str, legal))}",
        )
    if intermediate % unit and tensors_say != intermediate:
        groups = max(1, intermediate // unit)
        found = "" if tensors_say is None else f" The tensors say {tensors_say}."
        raise InputError(
            "E-PLAN-GROUP",
            f"layers.*.mlp.down_proj: intermediate_size {intermediate} is not a multiple of "
            f"group_size {unit} ({intermediate / unit:.2f} groups).{found} "
            f"Did you mean {groups * unit} (= {groups} x {unit})?",
        )
    return unit


def _dimension(true: int, unit: int, sizes: list[int]) -> Dimension:
    return Dimension(true=true, padded=sum(sizes), unit=unit, atom_sizes=tuple(sizes))
