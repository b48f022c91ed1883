"""Shapes of published models: models.json, read as `isobit plan` reads a config.json."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from isobit.errors import InputError
from isobit.shard.formats.scheme import assumed_quantization
from isobit.shard.model.spec import ModelSpec, spec_from_config

FILE = Path(__file__).with_name("models.json")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published model; `billion_parameters` is what its page says."""

    name: str
    source: str
    billion_parameters: float
    spec: ModelSpec


def read_models(quantization: str, group_size: int, file: Path = FILE) -> list[Model]:
    """All models of a file, with weights as `isobit plan --quantization` assumes them; "none" too.

    Raises InputError as spec_from_config and assumed_quantization do.
    """
    models = []
    for entry in json.loads(file.read_text(encoding="utf-8")):
        spec = spec_from_config(entry.pop("config"), None)
        if quantization != "none":
            spec = assumed(spec, quantization, group_size)
        models.append(Model(spec=spec, **entry))
    return models


def assumed(spec: ModelSpec, quantization: str, group_size: int) -> ModelSpec:
    """The spec with weights as --quantization and --group-size of `isobit plan` assume them."""
    return dataclasses.replace(spec, quantization=assumed_quantization(quantization, group_size))


def chosen(models: list[Model], names: list[str]) -> list[Model]:
    """The models with these names, all when there are none; raises InputError E-USAGE."""
    known = [model.name for model in models]
    if unknown := [name for name in names if name not in known]:
        raise InputError("E-USAGE", f"no model {', '.join(unknown)}. Known: {', '.join(known)}")
    return [model for model in models if model.name in names] if names else models
