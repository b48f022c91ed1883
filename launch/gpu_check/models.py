"""A small random model: against transformers, graphs against eager, and ranks against one rank."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

import torch

from ...runtime.settings.engine import EngineSettings
from ...runtime.tasks.verify import verify
from .place import NotRun, Place, Report, require
from .small_model import PAGES, VOCABULARY, open_decoder, save_model, step_of

IDS = (5, 17, 40, 61, 2, 33)
BOUND = 0.03
"""Activations are rounded to bfloat16, relative 2^-9, before every product."""


@torch.no_grad()
def eager_model(at: Place, report: Report) -> None:
    """Logits of a prompt beside those of transformers in float32."""
    if importlib.util.find_spec("transformers") is None:
        raise NotRun("transformers is not installed: it is the oracle")
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM

    # Its own lock is a semaphore of the system, which the end of this process would leave behind.
    tqdm.set_lock(threading.RLock())
    dense, int4 = save_model(at.folder, at)
    kinds = {"dense": dense, "int4": int4}
    if importlib.util.find_spec("compressed_tensors") is None:
        del kinds["int4"]  # transformers cannot read it
    elif at.rehearsal:
        del kinds["dense"]
    ids: list[int] = list(IDS[:3] if at.rehearsal else IDS)
    for kind, model in kinds.items():
        found = open_decoder(model, at.card(), eager=True).forward(step_of(0, ids))[1].cpu()
        oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        wanted = oracle(torch.tensor([ids])).logits[0]
        error = float(((found - wanted).abs().max() / wanted.abs().max()).nan_to_num(torch.inf))
        require(error < BOUND, f"{kind}: logits are off by {error:.3g} of the largest")
        report.row(model=kind, error=error)


def graphs(at: Place, report: Report) -> None:
    """Decode through graphs and without them, step by step, with new inputs in each."""
    _, int4 = save_model(at.folder, at)
    replayed, eager = (open_decoder(int4, at.card(), eager=eager) for eager in (False, True))
    for position in range(at.sizes.replays + 1):
        one = step_of(position, [(7 * position + 3) % VOCABULARY])
        hidden, logits = (each.clone() for each in replayed.forward(one))
        wanted = eager.forward(one)
        same = torch.equal(hidden, wanted[0]) and torch.equal(logits, wanted[1])
        require(same, f"step {position}: the graph gives other bits than eager")
    report.row(replays=at.sizes.replays)


def ranks(at: Place, report: Report) -> None:
    """`isobit verify` with the ranks on these GPUs: the bits of one rank."""
    _, int4 = save_model(at.folder, at)
    names = "cuda" if at.rehearsal else ",".join(f"cuda:{gpu}" for gpu in at.gpus)
    settings = EngineSettings(
        device=names,
        kv_pages=PAGES,
        max_step_rows=8,
        threads=1,
    )
    found = verify(int4, [1, len(at.gpus)], settings, [list(IDS[:3])], 2, at.launcher)
    require(found.difference is None, f"ranks differ from one rank: {found.difference}")
    digest = next(iter(found.degrees.values())).digest
    report.row(tp=[1, len(at.gpus)], digest=digest, **_contract(found.contract))


def _contract(text: str) -> dict[str, Any]:
    return {} if text == "on" else {"contract": text}
