"""Traces cut in any way into ranks, parts and steps are the same tensor again."""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.errors import InputError
from isobit.runtime.scheduler.batch import StepRows
from isobit.runtime.settings.trace import TraceSettings
from isobit.runtime.trace.compare import compare_traces
from isobit.runtime.trace.folder import INDEX, read_trace, write_index
from isobit.runtime.trace.index import TracedSite, TraceIndex, pack_index, unpack_index
from isobit.runtime.trace.tracer import Parts, Tracer

SITE = "layers.0.mlp.down_proj.in"
TOKENS = [3, 1, 4, 1, 5, 9]


def make_trace(folder, values, width, *, ranks=None, steps=None, order=None, tokens=None, **other):
    """A trace of `values` [T, padded width]; `ranks` lists for each rank its parts' ends."""
    tokens = tokens or TOKENS[: len(values)]
    ranks, steps = ranks or [[0, values.shape[1]]], steps or [len(values)]
    folder.mkdir()
    asked = TraceSettings(records=("digest", "values"), folder=str(folder))
    tracers = [Tracer(asked, rank) for rank in range(len(ranks))]
    records, rows, first = [], [], 0
    for step, count in enumerate(steps):
        places = list(range(first, first + count))
        rows.append(
            StepRows(
                tokens=[tokens[p] for p in places],
                positions=places,
                owner=[0] * count,
                sampled=[count - 1],
            )
        )
        found = []
        for rank, ends in enumerate(ranks):
            tracers[rank].begin_step(step, places, [count - 1])
            parts = Parts(kind="atom", first=0, ends=[end - ends[0] for end in ends], begin=ends[0])
            tracers[rank].columns(SITE, values[places, ends[0] : ends[-1]], parts)
            found.append(tracers[rank].take())
        records.append(found)
        first += count
    for tracer in tracers:
        tracer.close()
    fields = {
        "source": "isobit",
        "model": "m",
        "shape": {"layers": 1},
        "dtype": "float32",
        "degree": len(ranks),
        "plan": {"atoms": 8},
        "plan_hash": "",
        "all_reduce": "gather",
        "invariant": True,
        "software": {},
        "prompts": [len(tokens)],
        "tokens": [tokens],
        "errors": [None],
        "settings": TraceSettings(records=("digest", "values")),
        "sites": [TracedSite(name=SITE, width=width, sampled=False)],
        "steps": rows,
        "records": records,
        "orders": {} if order is None else {SITE: order},
    }
    write_index(folder, TraceIndex(**{**fields, **other}))
    return folder


def compared(a, b, **options):
    with read_trace(a) as one, read_trace(b) as other:
        return compare_traces(one, other, **options)


@st.composite
def cuts(draw, width):
    """Ranks that together hold every column, neighbours perhaps some of them twice."""
    inner = sorted(draw(st.sets(st.integers(1, width - 1), max_size=3)))
    edges = [0, *inner, width]
    ranks = []
    for begin, end in pairwise(edges):
        begin = draw(st.integers(max(0, begin - 2), begin))
        middle = sorted(draw(st.sets(st.integers(begin, end), max_size=3)) - {begin, end})
        ranks.append([begin, *middle, end])
    return ranks


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_of_one_tensor_is_equal_and_one_changed_number_is_found(data):
    width, padding = data.draw(st.integers(2, 12)), data.draw(st.integers(0, 3))
    rows = data.draw(st.integers(1, len(TOKENS)))
    values = torch.arange(rows * (width + padding)).view(rows, -1).float()
    cut_rows = st.integers(1, rows).map(lambda n: [n, rows - n] if n < rows else [rows])
    one, two = (
        {"ranks": data.draw(cuts(width + padding)), "steps": data.draw(cut_rows)} for _ in range(2)
    )
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, width - 1))
    garbage, changed = values.clone(), values.clone()
    garbage[:, width:] = float("nan")
    changed[row, column] += 0.5
    with tempfile.TemporaryDirectory() as folder:
        a = make_trace(Path(folder, "a"), values, width, **one)
        assert compared(a, make_trace(Path(folder, "b"), garbage, width, **two)).verdict == "equal"
        outcome = compared(a, make_trace(Path(folder, "c"), changed, width, **two))
    assert outcome.verdict == "different" and outcome.parted is not None
    first = outcome.parted.first
    assert (first.position, first.column, first.b - first.a) == (row, column, 0.5)
    ends = two["ranks"][first.rank]
    assert ends[0] <= column < ends[-1]
    assert outcome.parted.max_abs == 0.5


def test_columns_that_act_order_moved_are_put_back(tmp_path):
    values = torch.randn(3, 6)
    order = [4, 0, 5, 2, 1, 3]
    a = make_trace(tmp_path / "a", values, 6)
    b = make_trace(tmp_path / "b", values[:, order], 6, ranks=[[0, 2, 4], [4, 6]], order=order)
    assert compared(a, b).verdict == "equal"
    wrong = values.clone()
    wrong[1, 3] += 1
    c = make_trace(tmp_path / "c", wrong[:, order], 6, ranks=[[0, 2, 4], [4, 6]], order=order)
    parted = compared(a, c).parted
    assert parted is not None
    assert (parted.first.column, parted.first.rank, parted.first.part) == (3, 1, "atom 0")
    with pytest.raises(InputError) as error:
        compared(a, b, rank_b=0)
    assert error.value.code == "E-TRACE-APART"


def test_ranks_of_one_trace_that_differ_are_named(tmp_path):
    """Columns 2 and 3 are held by both ranks, as a shared KV head is."""
    values = torch.randn(2, 6)
    folder = make_trace(tmp_path / "a", values, 6, ranks=[[0, 4], [2, 6]])
    path = folder / "rank-1.safetensors"
    data = bytearray(path.read_bytes())
    data[-4 * 8 + 4 + 2] ^= 1  # row 0, second column: column 3
    path.write_bytes(data)
    other = make_trace(tmp_path / "b", values, 6)
    parted = compared(folder, other).parted
    assert parted is not None
    assert (parted.first.trace, parted.first.rank, parted.first.column) == ("a", 1, 3)


def test_numbers_are_those_of_float64(tmp_path):
    x = torch.randn(4, 6)
    y = (x + 0.01 * torch.randn(4, 6)).bfloat16()
    a = make_trace(tmp_path / "a", x, 6)
    b = make_trace(tmp_path / "b", y, 6, dtype="bfloat16", ranks=[[0, 3], [3, 6]])
    (site,) = compared(a, b).sites
    apart = y.double() - x.double()
    noise, signal = apart.square().sum(), x.double().square().sum()
    # The sums run over other blocks of the same float64 numbers.
    assert site.max_abs == float(apart.abs().max())
    assert site.relative_error == pytest.approx(float((noise / signal).sqrt()), rel=1e-12)
    assert site.sqnr_db == pytest.approx(float(10 * (signal / noise).log10()), rel=1e-12)
    assert (site.worst.position, site.worst.column) == divmod(int(apart.abs().argmax()), 6)


def test_a_number_that_became_nan_is_beyond_any_tolerance(tmp_path):
    x = torch.randn(3, 4)
    y = x.clone()
    y[2, 1] = float("nan")
    a = make_trace(tmp_path / "a", x, 4)
    b = make_trace(tmp_path / "b", y, 4)
    outcome = compared(a, b, tolerance=1e9)
    assert outcome.parted is not None and outcome.parted.lost == 1
    assert (outcome.parted.worst.position, outcome.parted.worst.column) == (2, 1)
    assert compared(b, b).verdict == "equal"


def test_rows_after_tokens_part_are_not_compared(tmp_path):
    """Both had the same prompt and drew another second token."""
    x = torch.randn(4, 4)
    y = x.clone()
    y[3] += 1
    a = make_trace(tmp_path / "a", x, 4, tokens=[1, 2, 3, 4], prompts=[2])
    b = make_trace(tmp_path / "b", y, 4, tokens=[1, 2, 3, 5], prompts=[2])
    outcome = compared(a, b)
    assert (outcome.verdict, outcome.tokens_part) == ("equal", {0: 3})
    assert outcome.sites[0].compared == 12


@pytest.mark.parametrize(
    ("changed", "code", "what"),
    [
        ({"tokens": [1, 2, 4]}, "E-TRACE-PROMPT", "token 2 is 3 in the one and 4"),
        ({"shape": {"layers": 2}}, "E-TRACE-MODEL", "layers: 1 and 2"),
    ],
)
def test_traces_of_something_else_are_refused(changed, code, what, tmp_path):
    a = make_trace(tmp_path / "a", torch.randn(3, 4), 4, tokens=[1, 2, 3])
    b = make_trace(tmp_path / "b", torch.randn(3, 4), 4, **{"tokens": [1, 2, 3], **changed})
    with pytest.raises(InputError) as error:
        compared(a, b)
    assert error.value.code == code
    assert what in error.value.message


def test_digests_are_compared_where_there_are_no_values(tmp_path):
    x = torch.randn(3, 8)
    y = x.clone()
    y[1, 5] += 1
    only = {"settings": TraceSettings(records=("digest",))}
    a = make_trace(tmp_path / "a", x, 8, ranks=[[0, 2, 4, 8]], **only)
    b = make_trace(tmp_path / "b", x, 8, ranks=[[0, 2, 4], [4, 8]], **only)
    c = make_trace(tmp_path / "c", y, 8, ranks=[[0, 2, 4], [4, 8]], **only)
    assert compared(a, b).verdict == "equal"
    parted = compared(a, c).parted
    assert parted is not None and parted.how == "digests"
    assert (parted.first.column, parted.first.rank) == (4, 1)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_truncated_values_are_refused(cut, tmp_path):
    folder = make_trace(tmp_path / "a", torch.randn(3, 4), 4)
    path = folder / "rank-0.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError) as error:
        read_trace(folder)
    assert error.value.code == "E-TRACE-DAMAGED"


def test_values_that_do_not_fit_the_index_are_refused(tmp_path):
    folder = make_trace(tmp_path / "a", torch.randn(3, 4), 4)
    other = make_trace(tmp_path / "b", torch.randn(3, 5), 5)
    (folder / "rank-0.safetensors").write_bytes((other / "rank-0.safetensors").read_bytes())
    with pytest.raises(InputError) as error:
        read_trace(folder)
    assert error.value.code == "E-TRACE-DAMAGED"
    assert "[3, 5], the index says [3, 4]" in error.value.message


def test_a_folder_that_is_no_trace_is_refused(tmp_path):
    with pytest.raises(InputError) as error:
        read_trace(tmp_path)
    assert error.value.code == "E-TRACE-MISSING"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_trace(tmp_path_factory.mktemp("whole") / "a", torch.randn(3, 4), 4)


def test_an_index_survives_packing(whole):
    packed = (whole / INDEX).read_bytes()
    assert pack_index(unpack_index(packed, "x")) == packed


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_index_is_an_index_or_an_input_error(whole, data):
    packed = (whole / INDEX).read_bytes()
    damaged = bytearray(packed)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(packed)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = "rank-0.safetensors"
        (folder / values).write_bytes((whole / values).read_bytes())
        (folder / INDEX).write_bytes(damaged[:end] if data.draw(st.booleans()) else damaged)
        try:
            compared(folder, whole)
        except InputError as error:
            assert error.code.startswith("E-TRACE-")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("degree", [1 << 39, 5000, 0, -1, "1", 2.0, None])
def test_a_degree_that_no_run_has_is_refused(whole, degree):
    """Whoever reads a trace looks for the values of every rank."""
    packed = msgpack.unpackb((whole / INDEX).read_bytes())
    packed |= {"degree": degree, "steps": [], "records": []}
    with pytest.raises(InputError) as error:
        unpack_index(msgpack.packb(packed), "index")
    assert error.value.code == "E-TRACE-INDEX"


@pytest.mark.timeout(60)
def test_a_pipe_is_no_index(tmp_path):
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(InputError, match="no regular file") as error:
        read_trace(tmp_path)
    assert error.value.code == "E-TRACE-INDEX"
