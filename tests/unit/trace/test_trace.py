"""The first difference of two traced runs: its site, part, step and rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isobit.errors import InputError
from isobit.runtime.settings.trace import TraceSettings, check_trace_settings
from isobit.runtime.trace.statistics import tensor_statistics
from isobit.runtime.trace.tracer import (
    Difference,
    Parts,
    Tracer,
    TraceRecord,
    first_difference,
    record_from,
)
from isobit.runtime.transport.wire import decode, encode

SITES = ["embed.out", "layers.0.q_proj.out", "layers.0.o_proj.out", "layers.1.q_proj.out"]


def rank_records(atoms, changes=None):
    """Records of one rank: replicated tensors and one part per atom, with some digests changed."""
    changes = changes or {}
    records = []
    for site in SITES:
        parts = [f"atom {a}" for a in atoms] if site.endswith("q_proj.out") else ["whole"]
        for part in parts:
            digest = changes.get((site, part), f"{site}/{part}")
            records.append(TraceRecord(site=site, part=part, digest=digest))
    return records


def run_of(degree, changes=None, steps=2):
    """A run [step][rank][record]; `changes` maps (step, rank) to changed digests."""
    changes = changes or {}
    per_rank = 4 // degree
    return [
        [
            rank_records(range(rank * per_rank, (rank + 1) * per_rank), changes.get((step, rank)))
            for rank in range(degree)
        ]
        for step in range(steps)
    ]


def test_equal_runs_have_no_difference():
    assert first_difference(run_of(1), run_of(4), (1, 4)) is None


def test_a_part_names_site_part_step_degrees_and_rank():
    wrong = run_of(2, {(1, 1): {("layers.1.q_proj.out", "atom 3"): "other"}})
    assert first_difference(run_of(1), wrong, (1, 2)) == Difference(
        site="layers.1.q_proj.out", part="atom 3", step=1, degrees=(1, 2), rank=1
    )


def test_the_earliest_site_wins_over_the_lower_rank():
    changes = {
        (0, 0): {("layers.1.q_proj.out", "atom 0"): "late"},
        (0, 1): {("layers.0.q_proj.out", "atom 2"): "early"},
    }
    found = first_difference(run_of(1), run_of(2, changes), (1, 2))
    assert found is not None
    assert (found.site, found.part, found.rank) == ("layers.0.q_proj.out", "atom 2", 1)


def test_the_earliest_step_wins_over_the_earliest_site():
    changes = {
        (0, 0): {("layers.1.q_proj.out", "atom 0"): "x"},
        (1, 0): {("embed.out", "whole"): "y"},
    }
    found = first_difference(run_of(1), run_of(2, changes), (1, 2))
    assert found is not None
    assert (found.step, found.site) == (0, "layers.1.q_proj.out")


def test_ranks_of_one_run_must_agree_on_what_both_hold():
    """Degree 1 agrees with rank 0 and cannot know which of four ranks is the odd one."""
    wrong = run_of(4, {(0, 2): {("layers.0.o_proj.out", "whole"): "other"}})
    found = first_difference(run_of(1), wrong, (1, 4))
    assert found is not None
    assert (found.site, found.part, found.rank) == ("layers.0.o_proj.out", "whole", 2)


def test_a_difference_within_the_first_run_is_its_own():
    wrong = run_of(2, {(0, 1): {("layers.0.o_proj.out", "whole"): "other"}})
    found = first_difference(wrong, wrong, (2, 2))
    assert found is not None
    assert (found.degrees, found.rank) == ((2, 2), 1)


def test_tracer_names_parts_by_their_number_in_the_model():
    tracer = Tracer(TraceSettings())
    x = torch.arange(12.0).view(2, 6)
    tracer.whole("a", x)
    tracer.columns("b", x, Parts(kind="kv head", first=4, ends=[0, 2, 2, 6], begin=8))
    tracer.partials("c", torch.stack([x, x + 1]), 6)
    assert [(r.site, r.part, r.begin, r.end) for r in tracer.take()] == [
        ("a", "whole", 0, 6),
        ("b", "kv head 4", 8, 10),
        ("b", "kv head 6", 10, 14),
        ("c", "atom 6", 36, 42),
        ("c", "atom 7", 42, 48),
    ]
    assert tracer.take() == []


def test_a_column_digest_does_not_depend_on_where_the_columns_lie():
    """A rank that owns only these columns and one that owns more agree."""
    x = torch.randn(3, 6)
    wide, narrow = Tracer(TraceSettings()), Tracer(TraceSettings())
    wide.columns("s", x, Parts(kind="atom", first=0, ends=[0, 2, 6], begin=0))
    narrow.columns("s", x[:, 2:].contiguous(), Parts(kind="atom", first=1, ends=[0, 4], begin=2))
    assert narrow.take()[0] == wide.take()[1]


def test_one_bit_changes_a_digest():
    one, two = Tracer(TraceSettings()), Tracer(TraceSettings())
    one.whole("s", torch.tensor([[0.0]]))
    two.whole("s", torch.tensor([[-0.0]]))
    assert one.take()[0].digest != two.take()[0].digest


def test_a_tracer_without_settings_wants_nothing():
    tracer = Tracer(None)
    assert not tracer.wants("a")
    tracer.whole("a", torch.ones(1, 1))
    assert tracer.take() == []


def test_only_sites_that_match_on_ranks_that_are_asked_are_wanted():
    settings = TraceSettings(sites=("layers.*.mlp.*", "logits"), ranks=(1,))
    wanted = ["layers.3.mlp.down_proj.in", "logits"]
    sites = [*wanted, "layers.3.self_attn.o_proj.in", "norm.out"]
    assert [site for site in sites if Tracer(settings, 1).wants(site)] == wanted
    assert not any(Tracer(settings, 0).wants(site) for site in sites)


def test_only_the_steps_that_are_asked_are_recorded():
    tracer = Tracer(TraceSettings(steps=(1,)))
    taken = []
    for step in range(3):
        tracer.begin_step(step, [step], [0])
        tracer.whole("a", torch.ones(1, 1))
        taken.append(len(tracer.take()))
    assert taken == [0, 1, 0]


def test_records_and_settings_survive_a_message():
    tracer = Tracer(TraceSettings(records=("digest", "statistics")))
    tracer.whole("a", torch.tensor([[1.0, float("nan")], [7e4, -2.0]]))
    (record,) = tracer.take()
    message = decode(encode({"record": record.fields()}))
    assert record_from(message["record"]) == record
    settings = TraceSettings(sites=("a", "b"), steps=(0, 2), folder="x")
    assert TraceSettings.from_dict(decode(encode(settings.to_dict()))) == settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_statistics_are_those_of_float64(dtype):
    x = (torch.randn(50, 30, generator=torch.Generator().manual_seed(3)) * 3e4).to(dtype)
    x[7, 3], x[9, 0] = float("inf"), float("nan")
    found, wide = tensor_statistics(x), x.double()
    finite = wide[wide.isfinite()]
    assert found.absmax == float(finite.abs().max())
    # numpy and torch sum float64 in other orders: the last few of 53 bits.
    assert found.rms == pytest.approx(np.sqrt(np.mean(finite.numpy() ** 2)), rel=1e-13)
    assert found.non_finite == int((~wide.isfinite()).sum()) / 1500
    beyond = wide.abs() > 65504
    assert found.beyond_fp16 == int(beyond.sum()) / 1500
    assert found.first_non_finite_row == min(
        row for row in range(50) if not wide[row].isfinite().all()
    )
    assert found.first_beyond_fp16_row == min(row for row in range(50) if beyond[row].any())


def test_statistics_of_nothing_and_of_nothing_finite():
    nothing = tensor_statistics(torch.empty(3, 0))
    assert (nothing.absmax, nothing.non_finite, nothing.first_non_finite_row) == (0, 0, None)
    nan = tensor_statistics(torch.full((2, 2), float("nan")))
    assert (nan.absmax, nan.rms, nan.non_finite, nan.beyond_fp16) == (0, 0, 1, 0)
    assert (nan.first_non_finite_row, nan.first_beyond_fp16_row) == (0, None)


def test_all_wrong_settings_are_named_at_once():
    settings = TraceSettings(
        records=("digests", "values"), sites=("layers.*.mlp.up",), ranks=(0, 2), steps=(-1,)
    )
    with pytest.raises(InputError) as error:
        check_trace_settings(settings, ["layers.0.mlp.up_proj.out"], 2)
    assert error.value.code == "E-TRACE-SETTINGS"
    for part in ("'digests'", "'layers.*.mlp.up'", "rank 2", "-1 is negative", "folder"):
        assert part in error.value.message
    assert "rank 0:" not in error.value.message
