"""`isobit trace` and `isobit compare`, over degrees and beside transformers."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from isobit.launch.record_transformers import load_transformers, record_transformers
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.settings.trace import TraceSettings
from isobit.runtime.tasks import trace_size
from isobit.runtime.tasks.record_trace import record_trace
from isobit.runtime.trace.compare import compare_traces
from isobit.runtime.trace.folder import read_trace
from isobit.runtime.trace.statistics import FP16_MAX
from isobit.shard.plan.plan import PlanSettings

from ..command import command
from ..support import DENSE, INT4, save_random_model
from .test_oracle import SHAPE

__all__ = ["command"]

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [300, 20]]
ALL = TraceSettings(records=("digest", "statistics", "values"))


def trace(model, out, degree=1, prompts=PROMPTS, new=3, wanted=ALL, **settings):
    plan = PlanSettings(degree=degree)
    record_trace(
        model,
        out,
        EngineSettings(plan=plan, **settings),
        wanted,
        prompts,
        SamplingSettings(max_tokens=new, ignore_eos=True),
        LocalLauncher,
    )
    return out


def compared(a, b, **options):
    with read_trace(a) as one, read_trace(b) as other:
        return compare_traces(one, other, **options)


@pytest.fixture(scope="module")
def degrees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("degrees")
    return {degree: trace(INT4, folder / f"tp{degree}", degree) for degree in (1, 2, 3, 4)}


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_degrees_have_the_same_bits_at_every_site(degree, degrees):
    outcome = compared(degrees[1], degrees[degree])
    assert outcome.verdict == "equal"
    assert (outcome.not_compared, outcome.why_not, outcome.tolerance) == ({}, [], None)
    with read_trace(degrees[1]) as one:
        assert [site.site for site in outcome.sites] == [site.name for site in one.index.sites]


def test_a_prompt_cut_into_pieces_is_aligned_by_position(degrees, tmp_path):
    outcome = compared(degrees[1], trace(INT4, tmp_path / "cut", 2, max_step_rows=3))
    assert outcome.verdict == "equal"
    with read_trace(degrees[1]) as one:
        width = one.index.shape["hidden_size"]
    assert outcome.sites[0].compared == (9 + 2 + 2) * width * 2  # every row, on two ranks


def test_statistics_are_those_of_the_values(degrees):
    with read_trace(degrees[3]) as one:
        for pieces in one.pieces.values():
            for piece in pieces:
                values = one.read(piece.entry, range(piece.entry.shape[0])).double()
                for part in piece.parts:
                    found = part.statistics
                    own = values[:, part.begin - piece.begin : part.end - piece.begin].abs()
                    assert found.absmax == float(own.max())
                    # Sums of the same float64 numbers in another order.
                    assert found.rms == pytest.approx(float(own.square().mean().sqrt()), rel=1e-12)
                    assert found.beyond_fp16 == float((own > FP16_MAX).double().mean())
                    assert (found.non_finite, found.first_non_finite_row) == (0, None)
        assert {step for _, step in one.pieces} == {0, 1, 2}


def test_one_changed_bit_is_named_with_its_site_token_column_and_rank(degrees, command, tmp_path):
    shutil.copytree(degrees[2], tmp_path / "b")
    site, row, column = "layers.2.mlp.gate_proj.out", 3, 9
    with read_trace(tmp_path / "b") as other:
        piece = other.pieces[site, 0][1]
        assert piece.rank == 1 and piece.entry is not None
    data = bytearray(piece.entry.file.read_bytes())
    data[piece.entry.begin + 4 * (row * piece.entry.shape[1] + column)] ^= 1
    piece.entry.file.write_bytes(data)
    outcome = command("compare", degrees[1], tmp_path / "b", "--json")
    report = outcome.json()
    assert (outcome.status, report["verdict"], report["bits_promised"]) == (1, "different", True)
    parted = report["parted"]
    assert parted["site"] == site
    first = parted["first"]
    assert (first["position"], first["column"], first["rank"]) == (row, piece.begin + column, 1)
    assert first["part"] == piece.part_of(piece.begin + column)
    assert [found["site"] for found in report["sites"] if not found["bit_equal"]] == [site]
    text = command("compare", degrees[1], tmp_path / "b")
    assert text.status == 1
    assert f"the traces part at {site}, step 0: token 3, column" in " ".join(text.stdout.split())


def test_transformers_agrees_at_every_site_and_a_changed_weight_is_found(tmp_path):
    ids = list(range(40, 80))
    ours = trace(DENSE, tmp_path / "ours", 2, [ids], 1, dtype="float32")
    model = load_transformers(DENSE, torch.float32)
    before = model.config._attn_implementation
    theirs = record_transformers(model, [ids], tmp_path / "theirs")
    assert model.config._attn_implementation == before
    outcome = compared(ours, theirs)
    assert outcome.verdict == "within-tolerance"
    # float32 on both sides, sums of up to 416 terms in other orders; measured 1.5e-6.
    assert outcome.tolerance is not None and outcome.tolerance < 1e-5
    assert set(outcome.not_compared.values()) == {"only in a"}
    left_out = {name.rpartition(".")[2] for name in outcome.not_compared if "lm_head" not in name}
    assert left_out == {"partial"}
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[17, 3] += 1
    wrong = compared(ours, record_transformers(model, [ids], tmp_path / "wrong"))
    assert wrong.parted is not None and wrong.parted.site == "layers.2.mlp.up_proj.out"
    assert wrong.parted.worst is not None and wrong.parted.worst.column == 17


@pytest.mark.parametrize(
    ("config", "build"), [(LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)]
)
def test_families_of_transformers_have_our_sites(config, build, tmp_path):
    shape = {**SHAPE, "head_dim": 16} if config is Qwen3Config else SHAPE
    model = build(config(**shape)).eval()
    save_random_model(tmp_path / "model", model)
    ids = [int(i) for i in torch.randint(0, 120, (70,), generator=torch.Generator().manual_seed(2))]
    ours = trace(tmp_path / "model", tmp_path / "ours", 1, [ids], 1, dtype="float32")
    outcome = compared(ours, record_transformers(model, [ids], tmp_path / "theirs"))
    assert outcome.verdict == "within-tolerance"
    assert len(outcome.sites) == 3 + 15 * 3


def test_the_command_says_what_it_wrote(command, tmp_path):
    out = tmp_path / "t"
    arguments = ("--prompt-ids", "1,2,3", "--launcher", "local", "--json")
    outcome = command(
        "trace", INT4, out, "-tp", 2, *arguments, "--sites", "layers.*.mlp.*", "--ranks", 1,
        "--max-tokens", 2, "--positions", "2,3",
    )  # fmt: skip
    report = outcome.json()
    assert (outcome.status, report["tp"], report["steps"], report["rows"]) == (0, 2, 2, 4)
    assert report["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert sorted(path.name for path in out.iterdir()) == ["index.msgpack", "rank-1.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    with read_trace(out) as found:
        assert {site.name.split(".")[2] for site in found.index.sites} == {"mlp"}
        assert all(p.entry.shape[0] == 1 for pieces in found.pieces.values() for p in pieces)
    again = command("trace", INT4, out, *arguments)
    assert (again.status, again.json()["error"]["code"]) == (2, "E-OUT-EXISTS")
    alone = command("compare", out, out, "--rank-b", 0, "--json")
    assert (alone.status, alone.json()["error"]["code"]) == (2, "E-TRACE-APART")


def test_a_disk_without_room_is_seen_before_anything_runs(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(trace_size.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Exception, match="E-TRACE-DISK") as error:
        trace(INT4, tmp_path / "t")
    assert "1000 bytes are free" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--sites", "layers.*.mpl.*"), "E-TRACE-SETTINGS"),
        (("--record", "digest,value"), "E-TRACE-SETTINGS"),
        (("--ranks", "0,x"), "E-USAGE"),
        (("--transformers", "-tp", "2"), "E-USAGE"),
    ],
)
def test_settings_that_cannot_be_leave_nothing_behind(arguments, code, command, tmp_path):
    outcome = command("trace", INT4, tmp_path / "t", "--prompt-ids", "1,2", *arguments, "--json")
    assert (outcome.status, outcome.json()["error"]["code"]) == (2, code)
    assert list(tmp_path.iterdir()) == []
