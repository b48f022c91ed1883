"""The driver of one model over its ranks: starts and checks them, forms steps, keeps the ledger."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from isobit.errors import RankFault

from ...shard.checkpoint.checkpoint import open_checkpoint
from ...shard.verify.verify_load import file_fingerprints
from ..devices import device_names
from ..model_files.settle import settle_files
from ..ranks.group import RankGroup
from ..ranks.launcher import Launcher
from ..scheduler.batch import (
    Request,
    StepRows,
    advance,
    assign_pages,
    check_requests,
    form_step,
    steps_after,
)
from ..scheduler.step_timer import Pace
from ..settings.engine import (
    EngineSettings,
    SamplingSettings,
    most_sampled,
    run_dtype,
    told_to_ranks,
)
from ..trace.tracer import TraceRecord, record_from
from .agreement import (
    check_files,
    check_loaded,
    differing_ranks,
    divergence,
    wrong_products,
)
from .preflight import prepare
from .replay import write_replay
from .results import Batch, completions

log = logging.getLogger("isobit.runtime")

NOTHING: Mapping[str, Any] = {}
CHOICE = ("name", "reason", "self_test")
OUTSIDE_CONTRACT = (
    "the library adds in an order of its own, which changes with the number of ranks. Answers may "
    "differ between tensor-parallel sizes, and that is no fault"
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
        if (line := self.spec.rotary.line(self.spec.max_positions)) is not None:
            log.warning("%s", line)
        self._sent = self._awaited = 0
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
        hidden, traces, steps, pace = [], [], [], Pace()
        in_flight: deque[list[StepRows]] = deque()
        while not all(request.finished for request in requests):
            if not in_flight:
                first = form_step(
                    requests, self.settings.max_step_rows, most_sampled(self.settings)
                )
                self._send(requests, in_flight, [first])
            most = pace.steps_in_one_go
            if self._sends_ahead and (following := steps_after(requests, in_flight[-1], most)):
                self._send(requests, in_flight, following)
            made = []
            for rows in in_flight.popleft():
                answers = self._answers()
                trace = [_records(answers[rank]) for rank in range(self.plan.degree)]
                self._check(requests, answers, trace)
                hidden.append(answers[0]["hidden_digest"])
                if self.settings.trace is not None:
                    traces.append(trace)
                    steps.append(rows)
                self._commit(requests, rows, answers[0], on_token)
                made.append(answers)
                if all(request.finished for request in requests):
                    break
            pace.add(made, all(request.emitted or request.finished for request in requests))
        return Batch(
            completions=completions(requests),
            hidden_digests=hidden,
            traces=traces,
            steps=steps,
            prefill_s=pace.prefill_s,
            decode_s=pace.decode_s,
            rank_times=pace.ranks,
        )

    def finish_trace(self) -> None:
        """Have every rank complete its file of values; raises InputError E-TRACE-DISK."""
        self._group.tell({"kind": "finish trace"})
        self._group.collect("traced", "writing the trace", self.settings.step_timeout_s)

    def _load(self, model: Path) -> list[dict[str, Any]]:
        settings = self.settings
        weights = settings.load.format != "dummy"
        settle_files(
            self._group,
            model,
            settings.model_files,
            weights=weights,
            timeout_s=settings.load_timeout_s,
        )
        job = {
            "kind": "load",
            "model": str(model.absolute()),
            "plan": self.plan.to_dict(),
            **told_to_ranks(settings),
            **self._group.meeting_place,
        }
        self._group.tell(job)
        reports = self._group.collect(
            "loaded", "loading the weights", settings.load_timeout_s, stop_at_error=False
        )
        ranks = [reports[rank] for rank in range(self.plan.degree)]
        for line in dict.fromkeys(line for rank in ranks for line in rank.pop("warnings")):
            log.warning("%s", line)
        if len({rank["host"] for rank in ranks}) > 1:
            for rank in ranks:
                where = "rank {rank} on host {host}: {interface} ({address}), {chosen_by}"
                log.info("%s", where.format(**rank, **rank["network"]))
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
        check_files(self.ranks, file_fingerprints(open_checkpoint(model), self.spec, dtype))

    def score_step(
        self, requests: list[Request], rows: StepRows, score: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run one step and return what `score_rows` answers; raises RankFault as `generate`."""
        self._send(requests, deque(), [rows], {"score": score})
        answers = self._answers()
        self._check(requests, answers, [_records(answers[rank]) for rank in sorted(answers)])
        return answers[0]

    def ask(self, kind: str, what: str) -> list[dict[str, Any]]:
        """The answer of each rank to a question; raises RankFault as `generate`."""
        self._group.tell({"kind": kind})
        answers = self._group.collect("answered", what, self.settings.step_timeout_s)
        return [answers[rank] for rank in range(self.plan.degree)]

    @property
    def _sends_ahead(self) -> bool:
        """Whether ranks get steps before those before them are checked and committed.

        Nothing leaves the driver before its own step is checked; what has been computed after a
        step that was wrong is dropped with it. Whoever looks into steps sees them one by one.
        """
        settings = self.settings
        return settings.trace is None and not settings.examine and settings.check != "full"

    def _send(
        self,
        requests: list[Request],
        in_flight: deque[list[StepRows]],
        steps: list[StepRows],
        more: Mapping[str, Any] = NOTHING,
    ) -> None:
        """Have the ranks make steps, which are the first of them again and again."""
        if not in_flight:  # what a run that has ended left behind is not waited for
            self._awaited = self._sent
        in_flight.append(steps)
        rows = steps[0]
        self._group.tell(
            {
                "kind": "steps",
                "step": self._sent + 1,
                "count": len(steps),
                **vars(rows),
                "tables": [request.pages for request in requests],
                "sampling": [requests[rows.owner[row]].sampling_fields for row in rows.sampled],
                **more,
            }
        )
        self._sent += len(steps)

    def _answers(self) -> dict[int, dict[str, Any]]:
        """The answers to the next step in flight; those to dropped steps are passed over."""
        self._awaited += 1
        what, timeout_s = f"step {self._awaited}", self.settings.step_timeout_s
        while True:
            answers = self._group.collect("stepped", what, timeout_s)
            if answers[0]["step"] == self._awaited:
                return answers

    def _check(
        self,
        requests: list[Request],
        answers: dict[int, dict[str, Any]],
        trace: list[list[TraceRecord]],
    ) -> None:
        """Raise RankFault E-RANK-DIVERGED when the ranks of a step differ, and keep a replay file.

        A traced run goes on after a difference: its trace says where it began.
        """
        if (wrong := wrong_products(self._awaited, answers)) is not None:
            raise wrong
        differing = differing_ranks(answers)
        if not differing or self.settings.trace is not None:
            return
        fault = divergence(self._awaited, differing, trace if any(trace) else (), self.plan.degree)
        try:
            path = write_replay(
                self._model,
                self.plan,
                requests,
                self._awaited,
                answers,
                fault.message,
                self.spec.max_positions,
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
        for row, token, digest in zip(rows.sampled, answer["tokens"], digests, strict=True):
            owner = rows.owner[row]
            if requests[owner].finished:
                continue  # it ended while this step was on its way
            if token < 0:
                requests[owner].fail(
                    f"step {self._awaited}: NaN or infinity in the logits of request {owner}, "
                    f"position {rows.positions[row]}. Nothing was sampled from them"
                )
                continue
            requests[owner].commit(token, self.spec.stop_ids)
            requests[owner].logits_digests.append(digest)
            on_token(owner, token)


def _records(answer: dict[str, Any]) -> list[TraceRecord]:
    return [record_from(fields) for fields in answer.get("trace", ())]
