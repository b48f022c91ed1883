"""A model through the CUDA program: right, the same bits however it is cut, graphs as lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from isobit.errors import InputError
from isobit.runtime.digest import tensor_digest
from isobit.runtime.settings.trace import TraceSettings
from isobit.runtime.trace.tracer import Tracer

from .cards import CountingCard
from .tiny import KINDS, MOST_ROWS, VOCABULARY, decoder, save, step

pytestmark = [
    pytest.mark.usefixtures("device"),
    # Rows that fill up a shape go through memory that nobody wrote.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]

IDS = [
    int(i) for i in torch.randint(0, VOCABULARY, (6,), generator=torch.Generator().manual_seed(1))
]
OTHER = [7, 3, 60, 11]
# Activations are rounded to bfloat16, relative 2^-9, before every product, as in
# tests/end_to_end/test_oracle.py; to float16 they are rounded eight times finer.
BOUNDS = {torch.bfloat16: 0.03, torch.float16: 0.03 / 8}


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models"), "int4")


@pytest.fixture(scope="module")
def whole(int4: Path) -> torch.Tensor:
    """Logits of every position of IDS, from one piece."""
    return decoder(int4, CountingCard()).forward(step((0, 0, IDS)))[1].clone()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("int4", torch.bfloat16), ("int8", torch.float16), ("dense", torch.float16)],
    ids=list(KINDS),
)
@torch.no_grad()
def test_logits_against_transformers(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = save(tmp_path, kind, dtype)
    ours = decoder(model, CountingCard()).forward(step((0, 0, IDS)))[1].cpu()
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    theirs = oracle(torch.tensor([IDS])).logits[0]
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < BOUNDS[dtype]


def test_pieces_and_neighbours_change_no_bit(int4: Path, whole: torch.Tensor) -> None:
    rank = decoder(int4, CountingCard())
    first = rank.forward(step((0, 0, IDS[:3]), (1, 0, OTHER[:2])))[1]
    assert torch.equal(first[:3], whole[:3])
    hidden, logits = rank.forward(step((1, 2, OTHER[2:3]), (0, 3, IDS[3:5]), sampled=[2]))
    assert hidden.shape[0] == 3 and torch.equal(logits[0], whole[4])
    batch = rank.forward(step((1, 3, OTHER[3:]), (0, 5, IDS[5:])))[1]
    assert torch.equal(batch[1], whole[5])
    # The same token again, as a batch of its own.
    assert torch.equal(rank.forward(step((0, 5, IDS[5:])))[1][0], whole[5])


def test_a_step_without_logits_leaves_the_cache_right(int4: Path, whole: torch.Tensor) -> None:
    rank = decoder(int4, CountingCard())
    assert rank.forward(step((0, 0, IDS[:5]), sampled=[]))[1].shape == (0, VOCABULARY)
    assert torch.equal(rank.forward(step((0, 5, IDS[5:])))[1][0], whole[5])


def test_graphs_do_what_lists_do(int4: Path, whole: torch.Tensor) -> None:
    card, plain = CountingCard(), CountingCard()
    graphs, lists = decoder(int4, card), decoder(int4, plain, eager=True)
    for position, token in enumerate(IDS[:4]):
        one = step((0, position, [token]))
        replayed, listed = (rank.forward(one) for rank in (graphs, lists))
        assert torch.equal(replayed[0], listed[0])
        assert torch.equal(replayed[1], listed[1]) and torch.equal(replayed[1][0], whole[position])
    # One graph for one row: the first step runs the list, which compiles; three replay.
    assert (card.graphs, card.replays, plain.graphs) == (1, 3, 0)
    assert card.uploads == 4


@torch.no_grad()
def test_replayed_graphs_against_transformers(int4: Path) -> None:
    """Greedy decoding: 20 tokens on a card, the last 18 of them from a graph."""
    rank = decoder(int4, CountingCard())
    oracle = AutoModelForCausalLM.from_pretrained(int4, dtype=torch.float32).eval()
    count, tokens = (20, [*IDS]) if torch.cuda.is_available() else (4, [*IDS])
    logits = rank.forward(step((0, 0, tokens)))[1][-1:].clone()
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits = rank.forward(step((0, len(tokens) - 1, tokens[-1:])))[1].clone()
        theirs = oracle(torch.tensor([tokens])).logits[0, -1]
        error = (logits[0].cpu() - theirs).abs().max() / theirs.abs().max()
        assert float(error) < BOUNDS[torch.bfloat16]


def test_long_contexts_split_over_the_card_or_not(int4: Path) -> None:
    """Decode gives each 512 keys programs of their own; a piece of a prompt does not."""
    rank = decoder(int4, CountingCard())
    pair = rank.forward(step((0, 598, IDS[:2])))[1].clone()
    single = [rank.forward(step((1, 598 + i, IDS[i : i + 1])))[1][0].clone() for i in range(2)]
    assert torch.equal(pair, torch.stack(single))


def test_steps_that_do_not_fit_are_refused(int4: Path) -> None:
    rank = decoder(int4, CountingCard())
    with pytest.raises(InputError, match=rf"{MOST_ROWS + 1} rows; memory is there for {MOST_ROWS}"):
        rank.forward(step((0, 0, [1] * (MOST_ROWS + 1))))
    spare = step((0, 0, [1]))
    spare.slots[0] = (rank.caches[0].pages - 1) * 64
    with pytest.raises(InputError, match="E-KERNEL-INDEX step: slots"):
        rank.forward(spare)


def test_sites_are_seen_on_the_way(int4: Path, whole: torch.Tensor) -> None:
    """A look at a site is a call between graphs, and sees the rows of the step alone."""
    card, tracer = CountingCard(), Tracer(TraceSettings(records=("digest",)))
    rank = decoder(int4, card, tracer=tracer)
    for position in range(2):
        rank.forward(step((0, position, IDS[position : position + 1])))
        records = {record.site: record.digest for record in tracer.take()}
        assert records["logits"] == tensor_digest(whole[position : position + 1])
    assert card.graphs == card.replays > 5
