"""Everything that can be checked before a process is started."""

from __future__ import annotations

from pathlib import Path

from isobit.errors import InputError

from ...shard.checkpoint.checkpoint import open_checkpoint
from ...shard.contents.expected_tensors import stored_intermediate_size
from ...shard.contents.stored_head import with_stored_head
from ...shard.load.validate import check_checkpoint
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan, make_plan
from ..forward.sites import site_names
from ..settings.engine import (
    EngineSettings,
    check_collectives,
    check_device,
    read_run_spec,
    run_dtype,
)
from ..settings.model_files import check_mode
from ..settings.trace import check_trace_settings
from .agreement import check_name


def prepare(model: Path, settings: EngineSettings) -> tuple[ModelSpec, ShardPlan]:
    """Check everything that can be checked before a process is started.

    Raises InputError for a model, a plan or settings that cannot work.
    """
    spec = read_run_spec(model, settings.load, settings.max_model_len)
    check_name(settings.check)
    check_device(settings, run_dtype(spec, settings.dtype))
    check_collectives(settings)
    check_mode(settings.model_files, model)
    if settings.threads < 0:
        raise InputError("E-THREADS", f"threads {settings.threads}: expected 0 (share) or more")
    if settings.load.format == "dummy":
        if settings.verify_load:
            raise InputError("E-LOAD-FORMAT", "dummy weights have no file to be compared with")
        plan = make_plan(spec, settings.plan)
    else:
        checkpoint = open_checkpoint(model)
        spec = with_stored_head(spec, checkpoint)
        plan = make_plan(spec, settings.plan, stored_intermediate_size(checkpoint))
        check_checkpoint(checkpoint, spec)
    if settings.trace is not None:
        check_trace_settings(settings.trace, site_names(spec, plan), plan.degree)
    return spec, plan
