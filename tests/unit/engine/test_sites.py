"""The table of sites is what a run records: names, order, columns and dtypes."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.engine.engine import Engine
from isobit.runtime.forward.decoder import Decoder
from isobit.runtime.forward.sites import model_sites, rank_columns, step_bytes
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.settings.trace import TraceSettings
from isobit.runtime.trace.tracer import Tracer
from isobit.runtime.trace.values import tensor_name, values_name
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import INT4

PROMPTS = [[5, 6, 7, 8], [9, 10]]


@pytest.mark.parametrize("degree", [1, 3])
def test_a_run_records_the_sites_of_the_table(degree, tmp_path):
    trace = TraceSettings(records=("values",), folder=str(tmp_path), steps=(0,))
    settings = EngineSettings(plan=PlanSettings(degree=degree), trace=trace)
    sampling = [SamplingSettings(max_tokens=2, ignore_eos=True)] * 2
    with Engine(INT4, settings, LocalLauncher()) as engine:
        batch = engine.generate(PROMPTS, sampling)
        engine.finish_trace()
    sites = model_sites(engine.spec, engine.plan, torch.bfloat16)
    rows = {False: 6, True: 2}
    assert batch.traces[1] == [[]] * degree
    for rank, records in enumerate(batch.traces[0]):
        assert list(dict.fromkeys(r.site for r in records)) == [
            site.name for site in sites if rank_columns(site, engine.spec, engine.plan, rank)
        ]
        with safe_open(tmp_path / values_name(rank), "pt") as file:
            total = 0
            for site in sites:
                columns = rank_columns(site, engine.spec, engine.plan, rank)
                tensor = file.get_tensor(tensor_name(0, site.name))
                assert (tensor.dtype, tuple(tensor.shape)) == (
                    site.dtype,
                    (rows[site.sampled], len(columns)),
                )
                parts = [r for r in records if r.site == site.name]
                assert sum(r.end - r.begin for r in parts) == len(columns)
                assert (parts[0].begin, parts[-1].end) == (columns.start, columns.stop)
                total += tensor.nbytes
            assert total == step_bytes(sites, engine.spec, engine.plan, rank, 6, 2)
            assert len(file.keys()) == len(sites)


def test_what_is_not_traced_costs_nothing():
    """Without a trace one run of compiled ops is the whole step; a site adds its own call alone."""
    spec, checkpoint = read_spec(INT4), open_checkpoint(INT4)
    plan = make_plan(spec, PlanSettings())
    weights = load_rank(checkpoint, spec, plan, 0, torch.bfloat16)

    def recorded(settings):
        return Decoder(
            spec,
            plan,
            0,
            weights,
            GatherCollectives(plan, 0),
            Tracer(settings),
            dtype=torch.bfloat16,
            kv_pages=1,
        ).recorded.program

    plain = recorded(None)._items
    assert [callable(item) for item in plain] == [False, False]  # a step's rows, its sampled rows
    assert recorded(TraceSettings(ranks=(1,)))._items == plain
    traced = recorded(TraceSettings(sites=("layers.2.mlp.down_proj.in",)))._items
    assert [callable(item) for item in traced] == [False, True, False, False]
    assert (traced[0][0], traced[-1]) == (plain[0][0], plain[-1])
