"""One rank: its weights, its KV cache, its answer to each message of the driver."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from isobit.errors import InputError, IsobitError

from ...kernels import ops
from ...kernels.program.program import Decoded, Program
from ...kernels.step.step import StepMemory
from ...shard.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ...shard.contents.stored_head import with_stored_head
from ...shard.load.load import dummy_rank, load_rank
from ...shard.plan.plan import ShardPlan
from ...shard.verify.verify_load import padding_faults, rank_fingerprints
from ..affinity import share_cores
from ..card_memory import graph_bytes, pages_on_card, rank_memory
from ..collectives.choose import choose
from ..devices import open_device
from ..digest import step_digests
from ..engine.agreement import replicated, software
from ..evaluation.score import score_rows
from ..forward.decoder import Decoder
from ..scheduler.batch import StepRows
from ..selfcheck.product_check import ProductCheck
from ..settings.engine import (
    LoadSettings,
    RankJob,
    SamplingSettings,
    read_run_spec,
    run_dtype,
)
from ..settings.trace import TraceSettings
from ..trace.tracer import Tracer
from ..transport import rendezvous
from ..transport.process_group import exchange
from .examination import Examination
from .fault_injection import FaultContext, inject_fault
from .sampler import sample

if TYPE_CHECKING:
    from ...kernels.gpu.readout import StepOutcome


class Worker:
    """A loaded rank. Rank 0 samples; every rank reports the digest of what all compute alike."""

    def __init__(self, job: RankJob) -> None:
        """Join the process group, read this rank's slices, allocate the KV cache."""
        started = time.perf_counter()
        # torch is left with small element-wise work, which its own threads only slow down.
        torch.set_num_threads(1)
        self.rank, self.plan = job.rank, ShardPlan.from_dict(job.plan)
        threads, cpus = share_cores(job.hosts, self.rank, job.threads)
        ops.set_threads(threads)
        device = open_device(job.device, most_rows=job.max_step_rows, eager=job.enforce_eager)
        on_cuda = device.device.type == "cuda"
        timeout_s = job.collective_timeout_s
        route = rendezvous.join(
            job.rendezvous,
            self.rank,
            self.plan.degree,
            timeout_s,
            hosts=job.hosts,
            cuda=on_cuda,
            set_up_timeout_s=job.load_timeout_s,
        )
        self.choice = choose(
            job.all_reduce,
            self.plan,
            self.rank,
            hosts=job.hosts,
            timeout_s=timeout_s,
            device=device.device,
        )
        load = LoadSettings(**job.load)
        self.spec = read_run_spec(job.model, load, job.max_model_len)
        dtype = run_dtype(self.spec, job.dtype)
        entries = None
        if load.format == "dummy":
            weights = dummy_rank(self.spec, self.plan, self.rank, dtype, device)
        else:
            checkpoint = open_checkpoint(job.model)
            entries = checkpoint.entries
            self.spec = with_stored_head(self.spec, checkpoint)
            weights = load_rank(checkpoint, self.spec, self.plan, self.rank, dtype, device)
        self.kv_pages = job.kv_pages
        if device.card is not None:
            self.kv_pages = (
                pages_on_card(
                    rank_memory(self.spec, self.plan, self.rank, dtype, job.max_step_rows, entries),
                    device.card,
                    job.gpu_memory_utilization,
                    job.kv_pages + device.spare_pages if job.kv_pages else 0,
                    0 if job.enforce_eager else graph_bytes(self.spec.layers),
                    lambda text: exchange(text, self.rank, self.plan.degree, "sizing the KV cache"),
                )
                - device.spare_pages
            )
        self.check, self.model = job.check, job.model
        traced = None if job.trace is None else TraceSettings.from_dict(job.trace)
        if traced is None and job.check == "full":
            traced = TraceSettings()
        self.tracer = Tracer(traced, self.rank)
        full, owned = job.check == "full", self.plan.owned(self.rank)
        self.products = ProductCheck(weights, self.plan.atoms, owned) if full else None
        self.examination = Examination(self.plan, self.rank, dtype) if job.examine else None
        self.decoder = Decoder(
            self.spec,
            self.plan,
            self.rank,
            weights,
            self.choice.collectives,
            self.tracer,
            dtype=dtype,
            kv_pages=self.kv_pages,
            products=self.examination.operations if self.examination else self.products,
            device=device,
        )
        self.report = {
            "rank": self.rank,
            "bytes_read": weights.bytes_read,
            "step_bytes": weights.step_bytes(),
            "node": os.uname().nodename,
            "host": job.hosts[self.rank],
            "network": None if route is None else asdict(route),
            "device": job.device,
            "kernels": ops.backend(device.device),
            "all_reduce": {
                "name": self.choice.name,
                "reason": self.choice.reason,
                "invariant": self.choice.invariant,
                "self_test": self.choice.self_test,
            },
            "kv_pages": self.kv_pages,
            "threads": threads,
            "cpus": cpus,
            "plan_hash": self.plan.content_hash(),
            "load_s": round(time.perf_counter() - started, 3),
        }
        self._sampled: list[int] = []
        self._outcome: StepOutcome | ops.Outcome | None = None
        self._ended = time.perf_counter()
        self._memory = StepMemory()
        self._fault = inject_fault(
            FaultContext(rank=self.rank, plan=self.plan, decoder=self.decoder)
        )
        if device.card is not None:
            compiling = time.perf_counter()
            self.report["kernels_compiled"] = self.decoder.prepare()
            self.report["compile_s"] = round(time.perf_counter() - compiling, 3)
        if job.check != "off":
            self.report["software"] = software(job.model, dtype, device.device)
            self.report["replicated"] = replicated(self.spec, self.plan, self.rank, weights)
        if job.verify_load:
            self.report |= self._loaded(open_checkpoint(job.model))

    def _loaded(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What this rank holds, for comparison with the file."""
        weights = self.decoder.weights
        return {
            "fingerprints": rank_fingerprints(checkpoint, self.spec, self.plan, self.rank, weights),
            "padding": padding_faults(self.plan, self.rank, self.spec, weights),
        }

    def answers(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Do what the driver asks for; yields what is sent back to it, for steps one by one."""
        kind = message["kind"]
        if kind == "finish trace":
            self.tracer.close()
            yield {"kind": "traced"}
        elif kind == "steps":
            first, count = message["step"], message["count"]
            yield self.step(message)
            if count > 1 and self._needs_no_look(message):
                yield from self._decode(first + 1, count - 1)
                return
            rows = StepRows(**{field.name: message[field.name] for field in fields(StepRows)})
            for later in range(1, count):
                yield self.step(message | vars(rows.again(later)) | {"step": first + later})
        else:
            assert self.examination is not None, kind
            found = self.examination.answer(kind, self.model, self.decoder)
            yield {"kind": "answered", **found}

    def _needs_no_look(self, message: dict[str, Any]) -> bool:
        """Whether steps can follow each other without Python between them."""
        program = self.decoder.recorded.program
        greedy = all(settings["temperature"] == 0 for settings in message["sampling"])
        looked_at = self.products is not None or self.tracer.enabled or self._fault
        return greedy and not looked_at and isinstance(program, Program) and program.compiled

    def _decode(self, first: int, count: int) -> Iterator[dict[str, Any]]:
        """Answers to steps like the last one, each row with what was sampled before."""
        program, outcome = self.decoder.recorded.program, self._outcome
        assert isinstance(program, Program) and isinstance(outcome, ops.Outcome)
        compares, fault = self.check != "off", None
        made: list[Decoded] = []
        try:
            for step in program.decode(count, self._sampled, self._memory.ends, outcome, compares):
                made.append(step)
        except IsobitError as error:
            fault = error  # of the step after those that were made, which are answered first
        inside = sum(busy_ns + waited_ns for _, _, busy_ns, waited_ns in made) / 1e9
        outside_s = max(0.0, self._lap() - inside) / max(1, len(made))
        for number, (tokens, digests, busy_ns, waited_ns) in enumerate(made, first):
            self._sampled = tokens
            times = _times(outside_s, busy_ns / 1e9, waited_ns / 1e9)
            answer = self._answer(number, times, len(tokens), digests)
            yield answer | ({"tokens": tokens} if self.rank == 0 else {})
        if fault is not None:
            raise fault
        self.choice.collectives.check()

    def _lap(self) -> float:
        """Seconds since the last call: since the end of the step before."""
        before, self._ended = self._ended, time.perf_counter()
        return self._ended - before

    def _answer(
        self, number: int, times: dict[str, float], rows: int, digests: list[int]
    ) -> dict[str, Any]:
        hidden, logits = step_digests(digests, len(digests) - rows) if digests else ("", [])
        return {
            "kind": "stepped",
            "step": number,
            **times,
            "hidden_digest": hidden,
            "logits_digests": logits,
        }

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run one step; see Engine for the fields of the message and of the answer."""
        busy, waited = ops.busy_seconds(), ops.external_seconds()
        number = message["step"]
        self.tracer.begin_step(number - 1, message["positions"], message["sampled"])
        step = self._memory.fill(
            tokens=step_tokens(message, self._sampled),
            positions=message["positions"],
            sequence=message["owner"],
            tables=message["tables"],
            sampled=message["sampled"],
        )
        hidden, logits = self.decoder.forward(step)
        kernels_s, collectives_s = ops.busy_seconds() - busy, ops.external_seconds() - waited
        outcome, keep = self._outcome_of(hidden, logits), self._needs_logits(message)
        greatest, digests = outcome.read(self.check != "off", keep)
        answer = self._answer(number, {}, len(greatest), digests)
        if "score" not in message:
            # All ranks: the driver sends steps before it knows what the last one sampled.
            self._sampled = sampled(message, outcome.host_rows if keep else logits, greatest)
            if self.rank == 0:
                answer["tokens"] = self._sampled
        elif self.rank == 0:
            answer |= score_rows(outcome.host_rows.numpy(), greatest, message["score"])
        self.choice.collectives.check()
        if self.products is not None:
            answer["findings"] = self.products.take()
        if self.tracer.enabled:
            answer["trace"] = [record.fields() for record in self.tracer.take()]
        outside_s = max(0.0, self._lap() - kernels_s - collectives_s)
        return answer | _times(outside_s, kernels_s, collectives_s)

    def _needs_logits(self, message: dict[str, Any]) -> bool:
        """Whether the host reads logits, and not only which is greatest."""
        if "score" in message:
            return self.rank == 0
        return any(settings["temperature"] > 0 for settings in message["sampling"])

    def _outcome_of(self, hidden: torch.Tensor, logits: torch.Tensor) -> StepOutcome | ops.Outcome:
        """What reads the outcome of a step: the last one's, while its tensors are the same."""
        last = self._outcome
        if last is None or hidden is not last.tensors[0] or logits is not last.rows:
            last = self._outcome = self.decoder.outcome(hidden, logits)
        return last

    def close(self) -> None:
        self.choice.collectives.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _times(outside_s: float, kernels_s: float, collectives_s: float) -> dict[str, float]:
    """The times of a step, as answers carry them; `outside_s` is neither in one nor the other."""
    return {
        "elapsed_s": outside_s + kernels_s + collectives_s,
        "kernels_s": kernels_s,
        "collectives_s": collectives_s,
    }


def sampled(message: dict[str, Any], logits: torch.Tensor, greatest: list[int]) -> list[int]:
    """A token for each row of logits, -1 where they are not finite; `greatest` as ops gives it.

    Logits are on the host, unless all rows are greedy.
    """
    tokens = list(greatest)
    for place, (settings, index) in enumerate(
        zip(message["sampling"], message["sampled"], strict=True)
    ):
        if tokens[place] >= 0 and settings["temperature"] > 0:
            position = message["positions"][index] + 1
            tokens[place] = sample(logits[place].numpy(), SamplingSettings(**settings), position)
    return tokens


def step_tokens(message: dict[str, Any], sampled: list[int]) -> list[int]:
    """The tokens of a step message, with what was sampled in the step before where it leaves them
    open. A request whose logits were not finite goes on with token 0, and is dropped by the driver.
    """
    return [t if t >= 0 else max(0, sampled[-1 - t]) for t in message["tokens"]]


def job_from_message(message: dict[str, Any]) -> RankJob:
    """Build the job of a "load" message; raises InputError E-WIRE when fields do not fit."""
    try:
        return RankJob(**{**message, "model": Path(message["model"])})
    except (TypeError, KeyError) as error:
        raise InputError(
            "E-WIRE", f"load message from another version of isobit: {error}"
        ) from error
