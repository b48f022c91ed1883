"""`isobit plan`: how a model is cut and what fits, from config.json and headers alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import typer

from isobit.errors import InputError

from ....runtime.settings.engine import ASSUMED, EngineSettings, check_method, run_dtype
from ....shard.checkpoint.checkpoint import has_weights, open_checkpoint
from ....shard.contents.expected_tensors import stored_intermediate_size
from ....shard.contents.stored_head import with_stored_head
from ....shard.estimate.explain import Question, explain
from ....shard.estimate.fit import Budget
from ....shard.formats.scheme import assumed_quantization
from ....shard.load.validate import check_checkpoint
from ....shard.model.spec import ModelSpec, at_length, read_spec
from ....shard.plan.plan import PlanSettings, make_plan
from ...models import model_folder
from ..options.common import (
    Atoms,
    Degree,
    Dtype,
    GroupSize,
    Json,
    Layout,
    LayoutName,
    MaxModelLen,
    Model,
    Quantization,
    assumed_group_size,
)
from ..output import print_json
from .details import print_details, print_verdict
from .tables import print_plan

DEFAULT_UTILIZATION = 0.9


def plan(
    model: Model,
    degree: Degree = 1,
    atoms: Atoms = 8,
    layout: Layout = LayoutName.PAD,
    gpu_memory: Annotated[
        str | None,
        typer.Option(help="GiB of each device: 24, or one value per rank, as in 24,24,12."),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of that memory to use (default: 0.9).")
    ] = None,
    max_model_len: MaxModelLen = None,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    group_size: GroupSize = None,
    ranks_per_host: Annotated[
        str | None,
        typer.Option(
            help="Ranks on each of several hosts, as in 2,1; --explain shows what is sent."
        ),
    ] = None,
    explain_all: Annotated[
        bool, typer.Option("--explain", help="Show layouts, traffic and formulas too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show how a model is cut, and what fits. Exit status 1 when the given memory is too small."""
    if gpu_memory is None and gpu_memory_utilization is not None:
        raise InputError("E-USAGE", "--gpu-memory-utilization needs --gpu-memory")
    assumed_group = assumed_group_size(quantization, group_size)
    budget = None
    if gpu_memory is not None:
        share = DEFAULT_UTILIZATION if gpu_memory_utilization is None else gpu_memory_utilization
        budget = _budget(gpu_memory, share)
    folder = model_folder(model, weights=False)
    spec = _spec_for(folder, max_model_len)
    assumed = quantization in ASSUMED
    if quantization is not None and not assumed:
        check_method(spec, quantization)
    elif quantization is not None:
        spec = _assume(spec, quantization, assumed_group)
    settings = PlanSettings(degree=degree, atoms=atoms, layout=layout.value)
    question = Question(
        dtype=str(run_dtype(spec, dtype)).removeprefix("torch."),
        step_rows=EngineSettings().max_step_rows,
        length=max_model_len,
        budget=budget,
        ranks_per_host=() if ranks_per_host is None else _counts(ranks_per_host),
    )
    checkpoint = None
    if has_weights(folder) and not assumed:
        checkpoint = open_checkpoint(folder)
        spec = with_stored_head(spec, checkpoint)
    tensors_say = None if checkpoint is None else stored_intermediate_size(checkpoint)
    made = make_plan(spec, settings, tensors_say)
    if checkpoint is not None:
        check_checkpoint(checkpoint, spec)
    found = explain(spec, made, question, checkpoint, tensors_say)
    if as_json:
        print_json(found.report())
    else:
        print_plan(found)
        if explain_all:
            print_details(found)
        print_verdict(found)
    if found.fit is not None and not found.fit.fits:
        raise typer.Exit(1)


def _spec_for(folder: Path, max_model_len: int | None) -> ModelSpec:
    """The model as an engine with that length would run it.

    Where a shorter length changes nothing but how much memory is needed, the plan still says what
    would fit of all that the model has.
    """
    spec = read_spec(folder)
    if max_model_len is None:
        return spec
    asked = at_length(spec, max_model_len)
    return asked if asked.rotary != spec.rotary or max_model_len > spec.max_positions else spec


def _assume(spec: ModelSpec, quantization: str, group_size: int) -> ModelSpec:
    if spec.quantization is not None:
        raise InputError(
            "E-USAGE",
            f"--quantization {quantization}: config.json already says "
            f"{spec.quantization.method}; leave the option out",
        )
    return dataclasses.replace(spec, quantization=assumed_quantization(quantization, group_size))


def _counts(text: str) -> tuple[int, ...]:
    """Parse --ranks-per-host; raises InputError E-PLAN-HOSTS."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            "E-PLAN-HOSTS", f"--ranks-per-host {text!r}: expected numbers between commas, as in 2,1"
        ) from None


def _budget(text: str, utilization: float) -> Budget:
    """Parse --gpu-memory; raises InputError E-PLAN-MEMORY."""
    try:
        gib = tuple(float(part) for part in text.split(","))
    except ValueError:
        gib = ()
    if not gib or not all(0 < value < math.inf for value in gib):
        raise InputError(
            "E-PLAN-MEMORY",
            f"--gpu-memory {text!r}: expected GiB of each device, as in 24 or 24,24,12",
        )
    if not 0 < utilization <= 1:
        raise InputError(
            "E-PLAN-MEMORY",
            f"--gpu-memory-utilization {utilization}: expected more than 0 and at most 1",
        )
    return Budget(gib=gib, utilization=utilization)
