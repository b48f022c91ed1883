"""The driver of one model over its ranks: starts and checks them, forms steps, keeps the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ..kernels.errors import RankFault
from ..shard.checkpoint import open_checkpoint
from ..shard.verify_load import compare, file_fingerprints
from .batch import Request, StepRows, advance, assign_pages, check_requests, form_step
from .completion import Batch, completions
from .config import (
    EngineSettings,
    SamplingSettings,
    card_share,
    run_dtype,
)
from .consistency import check_loaded, differing_ranks, divergence, wrong_products
from .devices import device_names
from .launcher import Launcher
from .prepare import prepare
from .rank_group import RankGroup
from .replay import write_replay
from .trace import TraceRecord, record_from

log = logging.getLogger("isobit.runtime")

NOTHING: Mapping[str, Any] = {}
CHOICE = ("name", "reason", "self_test")
OUTSIDE_CONTRACT = (
    "the library adds in an order of its own, which changes with the number of ranks. Answers may "
    "differ between degrees, and that is no fault"
)
OnToken = Callable[[int, int], None]


class Engine:
    """A running model. Use as a context manager; leaving it ends every rank."""

    def __init__(self, model: Path, settings: EngineSettings, launcher: Launcher) -> None:
        """Start and load every rank.

        Raises InputError as `prepare` and loading do, RankFault when a rank dies or is silent.
        """
        started = time.perf_counter()
        self.settings, self._model = settings, model
        self.spec, self.plan = prepare(model, settings)
        self._step_number = 0
        self._group = RankGroup(
            self.plan.degree,
            launcher,
            settings.load_timeout_s,
            device_names(settings.device, self.plan.degree),
        )
        try:
            self.ranks = self._load(model)
            if settings.verify_load:
                self._verify_load(model)
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - started

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def kv_pages(self) -> int:
        """How many pages the KV cache of every rank has for requests."""
        return self.ranks[0]["kv_pages"]

    def close(self) -> None:
        """Tell the ranks to stop, then end their processes."""
        self._group.close()

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sequence[SamplingSettings],
        on_token: OnToken = lambda request, token: None,
    ) -> Batch:
        """Run a static batch to its end; `on_token(request, id)` gets each committed token.

        Logits that are not finite end their request alone. Raises InputError for prompts that
        cannot run, RankFault E-RANK-DIVERGED when ranks disagree. No token is let out before its
        step has been checked.
        """
        requests = [
            Request(prompt=list(prompt), sampling=settings)
            for prompt, settings in zip(prompts, sampling, strict=True)
        ]
        check_requests(self.spec, prompts, sampling)
        assign_pages(requests, self.kv_pages)
        hidden, traces, steps, times, kernels, waits = [], [], [], [], [], []
        started = time.perf_counter()
        first_token_s = 0.0
        while not all(request.finished for request in requests):
            step_started = time.perf_counter()
            rows = form_step(requests, self.settings.max_step_rows)
            answers = self._step(requests, rows)
            trace = [_records(answers[rank]) for rank in range(self.plan.degree)]
            self._check(requests, answers, trace)
            hidden.append(answers[0]["hidden_digest"])
            if self.settings.trace is not None:
                traces.append(trace)
                steps.append(rows)
            self._commit(requests, rows, answers[0], on_token)
            started_all = all(request.emitted or request.finished for request in requests)
            if started_all and not first_token_s:
                first_token_s = time.perf_counter() - started
            elif first_token_s:
                times.append(time.perf_counter() - step_started)
                kernels.append(max(answer["kernels_s"] for answer in answers.values()))
                waits.append(max(answer["collectives_s"] for answer in answers.values()))
        return Batch(
            completions=completions(requests),
            hidden_digests=hidden,
            traces=traces,
            steps=steps,
            prefill_s=first_token_s,
            decode_s=times,
            decode_kernels_s=kernels,
            decode_collectives_s=waits,
        )

    def finish_trace(self) -> None:
        """Have every rank complete its file of values; raises InputError E-TRACE-DISK."""
        self._group.tell({"kind": "finish trace"})
        self._group.collect("traced", "writing the trace", self.settings.step_timeout_s)

    def _load(self, model: Path) -> list[dict[str, Any]]:
        settings = self.settings
        job = {
            "kind": "load",
            "model": str(model.absolute()),
            "plan": self.plan.to_dict(),
            "load": asdict(settings.load),
            "dtype": settings.dtype,
            "kv_pages": settings.kv_pages,
            "threads": settings.threads,
            **self._group.meeting_place,
            "trace": None if settings.trace is None else settings.trace.to_dict(),
            "examine": settings.examine,
            "check": settings.check,
            "all_reduce": settings.all_reduce,
            "collective_timeout_s": settings.collective_timeout_s,
            "verify_load": settings.verify_load,
            "max_step_rows": settings.max_step_rows,
            "enforce_eager": settings.enforce_eager,
            "gpu_memory_utilization": card_share(settings),
        }
        self._group.tell(job)
        reports = self._group.collect(
            "loaded", "loading the weights", settings.load_timeout_s, stop_at_error=False
        )
        ranks = [reports[rank] for rank in range(self.plan.degree)]
        for line in dict.fromkeys(line for rank in ranks for line in rank.pop("warnings")):
            log.warning("%s", line)
        chosen = ranks[0]["all_reduce"]
        log.info("all-reduce: %s, %s; self-test %s", *(chosen[k] for k in CHOICE))
        if not chosen["invariant"]:
            log.warning("all-reduce %s: %s", chosen["name"], OUTSIDE_CONTRACT)
        if settings.check != "off" and settings.trace is None:
            check_loaded(ranks)
        return ranks

    def _verify_load(self, model: Path) -> None:
        """Raise RankFault E-LOAD-DIFFERS when the shards together are not the file."""
        dtype = run_dtype(self.spec, self.settings.dtype)
        expected = file_fingerprints(open_checkpoint(model), self.spec, dtype)
        faults = compare(expected, [rank.pop("fingerprints") for rank in self.ranks])
        wrong = [f"{fault.module}: differs from the file" for fault in faults]
        for rank in self.ranks:
            wrong += [f"{name}: padding on rank {rank['rank']}" for name in rank.pop("padding")]
        if wrong:
            raise RankFault(
                "E-LOAD-DIFFERS", f"{len(wrong)} weights were loaded wrongly:\n" + "\n".join(wrong)
            )

    def score_step(
        self, requests: list[Request], rows: StepRows, score: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run one step and return what `score_rows` answers; raises RankFault as `generate`."""
        answers = self._step(requests, rows, {"score": score})
        self._check(requests, answers, [_records(answers[rank]) for rank in sorted(answers)])
        return answers[0]

    def ask(self, kind: str, what: str) -> list[dict[str, Any]]:
        """The answer of each rank to a question; raises RankFault as `generate`."""
        self._group.tell({"kind": kind})
        answers = self._group.collect("answered", what, self.settings.step_timeout_s)
        return [answers[rank] for rank in range(self.plan.degree)]

    def _step(
        self, requests: list[Request], rows: StepRows, more: Mapping[str, Any] = NOTHING
    ) -> dict[int, dict[str, Any]]:
        self._step_number += 1
        self._group.tell(
            {
                "kind": "step",
                "step": self._step_number,
                "tokens": rows.tokens,
                "positions": rows.positions,
                "owner": rows.owner,
                "sampled": rows.sampled,
                "tables": [request.pages for request in requests],
                "sampling": [requests[rows.owner[row]].sampling_fields for row in rows.sampled],
                **more,
            }
        )
        what, timeout_s = f"step {self._step_number}", self.settings.step_timeout_s
        return self._group.collect("stepped", what, timeout_s)

    def _check(
        self,
        requests: list[Request],
        answers: dict[int, dict[str, Any]],
        trace: list[list[TraceRecord]],
    ) -> None:
        """Raise RankFault E-RANK-DIVERGED when the ranks of a step differ, and keep a replay file.

        A traced run goes on after a difference: its trace says where it began.
        """
        if (wrong := wrong_products(self._step_number, answers)) is not None:
            raise wrong
        differing = differing_ranks(answers)
        if not differing or self.settings.trace is not None:
            return
        fault = divergence(
            self._step_number, differing, trace if any(trace) else (), self.plan.degree
        )
        try:
            path = write_replay(
                self._model, self.plan, requests, self._step_number, answers, fault.message
            )
        except OSError as error:
            raise RankFault(fault.code, f"{fault.message}. No replay file: {error}") from fault
        raise RankFault(
            fault.code, f"{fault.message}. To see it again: isobit verify --replay {path}"
        )

    def _commit(
        self,
        requests: list[Request],
        rows: StepRows,
        answer: dict[str, Any],
        on_token: OnToken,
    ) -> None:
        advance(requests, rows)
        digests = answer["logits_digests"] or [""] * len(rows.sampled)
        for row, token, finite, digest in zip(
            rows.sampled, answer["tokens"], answer["finite"], digests, strict=True
        ):
            owner = rows.owner[row]
            if not finite:
                requests[owner].fail(
                    f"step {self._step_number}: NaN or infinity in the logits of request {owner}, "
                    f"position {rows.positions[row]}. Nothing was sampled from them"
                )
                continue
            requests[owner].commit(token, self.spec.stop_ids)
            requests[owner].logits_digests.append(digest)
            on_token(owner, token)


def _records(answer: dict[str, Any]) -> list[TraceRecord]:
    return [record_from(fields) for fields in answer.get("trace", ())]
