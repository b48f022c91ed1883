"""The first difference of two traced runs: its site, part, step and rank."""

from __future__ import annotations

import torch
from isobit.runtime.trace import Difference, Tracer, TraceRecord, first_difference

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
    tracer = Tracer(True)
    x = torch.arange(12.0).view(2, 6)
    tracer.whole("a", x)
    tracer.columns("b", x, "kv head", 4, [0, 2, 2, 6])
    tracer.partials("c", torch.stack([x, x + 1]), 6)
    assert [(r.site, r.part) for r in tracer.take()] == [
        ("a", "whole"),
        ("b", "kv head 4"),
        ("b", "kv head 6"),
        ("c", "atom 6"),
        ("c", "atom 7"),
    ]
    assert tracer.take() == []


def test_a_column_digest_does_not_depend_on_where_the_columns_lie():
    """A rank that owns only these columns and one that owns more agree."""
    x = torch.randn(3, 6)
    wide, narrow = Tracer(True), Tracer(True)
    wide.columns("s", x, "atom", 0, [0, 2, 6])
    narrow.columns("s", x[:, 2:].contiguous(), "atom", 1, [0, 4])
    assert narrow.take()[0] == wide.take()[1]


def test_one_bit_changes_a_digest():
    one, two = Tracer(True), Tracer(True)
    one.whole("s", torch.tensor([0.0]))
    two.whole("s", torch.tensor([-0.0]))
    assert one.take()[0].digest != two.take()[0].digest


def test_a_silent_tracer_records_nothing():
    tracer = Tracer(False)
    tracer.whole("a", torch.ones(1))
    assert tracer.take() == []
