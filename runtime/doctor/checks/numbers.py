"""Check 6: how large the numbers of a run are, and where they first leave what the dtype holds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isobit.findings import Evidence, Finding

from ...engine.results import Completion
from ...forward.sites import model_sites
from ...scheduler.batch import StepRows
from ...scheduler.kv_pages import with_pages_for
from ...settings.engine import run_dtype
from ...settings.trace import TraceSettings
from ...trace.statistics import FP16_MAX
from ...trace.tracer import Run
from ..context import Context
from ..failures import layer_of, op_of
from ..site_numbers import (
    Place,
    by_rank,
    constant_logits,
    first_all_zero,
    first_not_finite,
    peaks,
    storms,
)

NAME = "numbers"
LENGTHS = (50, 51)
"""Some kernels change their path between these, and only one path overflows."""
LONGEST = 512
NEAR = 0.5
STORM = 3
"""So many times token 0 and nothing else is no answer."""
BINARY16 = "the largest finite float16 (IEEE 754 binary16)"
HEADROOM = "half of that: other prompts reach further than these few"


@dataclass(frozen=True, kw_only=True)
class _Ran:
    """One run: its dtype, prompts, what came of each, and which sites are stored in that dtype.

    `traces` and `steps` are those of all prompts, one after another; rows are owned by the number
    of their prompt.
    """

    dtype: torch.dtype
    prompts: list[list[int]]
    completions: list[Completion]
    traces: Run
    steps: list[StepRows]
    stored: frozenset[str]

    @property
    def limit(self) -> float:
        return float(torch.finfo(self.dtype).max)

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def check_numbers(context: Context) -> list[Finding]:
    """Run short and longer prompts with statistics at every site; look for what is not finite."""
    # Ranks that were lost would be lost again.
    spec = context.ranks().spec
    ran = _run(context, context.case.engine.dtype)
    context.measure("dtype", ran.name)
    context.measure("trained_in", spec.dtype)
    context.measure(
        "prompts",
        [
            {"length": len(prompt), "tokens": done.tokens, "error": done.error}
            for prompt, done in zip(ran.prompts, ran.completions, strict=True)
        ],
    )
    context.measure("sites", by_rank(ran.traces))
    if (place := first_not_finite(ran.traces, ran.steps)) is not None:
        context.measure("first_not_finite", dataclasses.asdict(place))
        wide = _run(context, _wider(spec.dtype, ran.name))
        return [_not_finite(ran, wide, place, spec.dtype)]
    if found := _constant(ran):
        return [found]
    return [*_storm(ran), *_near(ran)]


def _run(context: Context, dtype: str) -> _Ran:
    case = context.case
    spec, plan = context.prepared()
    lengths = LENGTHS if case.quick else (*LENGTHS, LONGEST)
    prompts = _prompts(case.prompts, lengths, spec.max_positions - case.max_tokens)
    longest = max(map(len, prompts))
    settings = dataclasses.replace(
        with_pages_for(context.settings(case.degree), [longest + case.max_tokens]),
        dtype=dtype,
        trace=TraceSettings(records=("statistics",)),
        examine=False,
    )
    with context.engine(settings) as engine:
        # One at a time: kernels choose their path by the number of rows in a step.
        batches = [engine.generate([prompt], [case.sampling]) for prompt in prompts]
    chosen = run_dtype(spec, dtype)
    stored = [site.name for site in model_sites(spec, plan, chosen) if site.dtype == chosen]
    return _Ran(
        dtype=chosen,
        prompts=prompts,
        completions=[batch.completions[0] for batch in batches],
        traces=[trace for batch in batches for trace in batch.traces],
        steps=[
            dataclasses.replace(rows, owner=[number] * len(rows.owner))
            for number, batch in enumerate(batches)
            for rows in batch.steps
        ],
        stored=frozenset(stored),
    )


def _prompts(given: Sequence[Sequence[int]], lengths: Sequence[int], most: int) -> list[list[int]]:
    """The prompts given, and their tokens over and over at each length that the model can take."""
    endless = list(
        itertools.islice(itertools.cycle(t for prompt in given for t in prompt), LONGEST)
    )
    wanted = sorted({min(length, most) for length in lengths})
    return [list(prompt) for prompt in given] + [endless[:length] for length in wanted if length]


def _wider(trained_in: str, ran_in: str) -> str:
    """A dtype with more room than the one that overflowed."""
    if ran_in != "float16":
        return "float32"
    return trained_in if trained_in != "float16" else "bfloat16"


def _not_finite(ran: _Ran, wide: _Ran, place: Place, trained_in: str) -> Finding:
    """What is not finite in one dtype, with what the same place holds in a wider one."""
    peak = peaks(wide.traces).get(place.site)
    still = first_not_finite(wide.traces, wide.steps)
    true = 0.0 if peak is None else peak.absmax
    where = (
        f"prompt {place.prompt} of {len(ran.prompts[place.prompt])} tokens, position "
        f"{place.position}, token {place.token}"
    )
    evidence = (
        Evidence(
            what=f"share of {place.site} that is not finite, {ran.name}, {_ranks(place.ranks)}, "
            + where,
            measured=float(f"{place.statistics.non_finite:.3g}"),
            threshold=0,
            source="everything before this site is finite, on every rank",
        ),
        Evidence(
            what=f"absmax of {place.site} when run in {wide.name}",
            measured=true,
            threshold=ran.limit,
            source=BINARY16 if ran.name == "float16" else f"the largest finite {ran.name}",
        ),
        Evidence(
            what=f"the same prompts in {wide.name}",
            measured="every site is finite" if still is None else f"not finite at {still.site}",
            threshold="finite",
        ),
        _by_length(ran),
    )
    overflows = still is None and place.site in ran.stored and true > ran.limit
    if overflows:
        assert peak is not None
        what = (
            f"E-NUM-OVERFLOW {place.site} rank {peak.rank}: absmax {true:.2g} > {ran.limit:.5g}. "
        ).replace("e+0", "e")
        what += (
            f"The model was trained in {trained_in}; run with --dtype {wide.name}"
            if trained_in == wide.name
            else f"Run with --dtype {wide.name}"
        )
        reason = f"what this place holds in {wide.name} does not fit {ran.name}"
        remedy = f"isobit generate MODEL -tp N --dtype {wide.name} -p TEXT"
    elif still is None:
        what = (
            f"{place.site} on {_ranks(place.ranks)} is not finite, though its true values, up to "
            f"{true:.3g}, fit {ran.name}"
        )
        reason = "the inputs are finite and the exact result would fit: it is lost on the way to it"
        remedy = f"isobit generate MODEL -tp N --dtype {wide.name} -p TEXT; report the replay file"
    else:
        what = f"{place.site} on {_ranks(place.ranks)} is not finite, nor is it in {wide.name}"
        reason = "no dtype holds what these weights make of these prompts"
        remedy = "compare the files with where they came from: isobit inspect MODEL --sha256"
    inside = still is None and not overflows
    return Finding(
        check=NAME,
        severity="error",
        verdict="kernel-fault" if inside else "numeric-overflow",
        what=what,
        site=place.site,
        layer=layer_of(place.site),
        op=op_of(place.site),
        rank=peak.rank if overflows and peak is not None else place.rank,
        evidence=evidence,
        confidence="high" if overflows else "low" if inside else "medium",
        reason=reason,
        remedy=remedy,
    )


def _by_length(ran: _Ran) -> Evidence:
    """Which lengths of prompts go bad: paths of kernels differ by the number of rows."""
    ends = [
        f"{len(prompt)}: {'not finite' if done.error else 'finite'}"
        for prompt, done in zip(ran.prompts, ran.completions, strict=True)
    ]
    return Evidence(what="logits by the length of the prompt", measured=", ".join(ends))


def _constant(ran: _Ran) -> Finding | None:
    """Logits that are all alike: token 0 is the answer to everything."""
    value = constant_logits(ran.traces)
    if value is None:
        return None
    zero = first_all_zero(ran.traces)
    return Finding(
        check=NAME,
        severity="error",
        verdict="checkpoint-damaged",
        what="every logit is the same number, so token 0 is the answer to everything"
        + (f"; {zero} is the first site with nothing but zeros" if zero else ""),
        site=zero or "logits",
        layer=layer_of(zero or ""),
        op=op_of(zero or "logits"),
        evidence=(
            Evidence(what="magnitude of all logits", measured=value),
            Evidence(what="tokens", measured=str([c.tokens for c in ran.completions])),
        ),
        confidence="low",
        reason="numbers are finite and kernels were checked; what is left is the weights",
        remedy="compare the files with where they came from: isobit inspect MODEL --sha256",
    )


def _storm(ran: _Ran) -> list[Finding]:
    tokens = [done.tokens for done in ran.completions]
    if not (found := storms(tokens, STORM)):
        return []
    lengths = ", ".join(str(len(ran.prompts[i])) for i in found)
    return [
        Finding(
            check=NAME,
            severity="warning",
            what=f"token 0 and nothing else follows prompts of {lengths} tokens; its logits are "
            "finite and differ",
            evidence=(Evidence(what="tokens", measured=str(tokens)),),
            remedy="isobit doctor MODEL -tp N --prompt TEXT, of which the answer is known",
        )
    ]


def _near(ran: _Ran) -> list[Finding]:
    """In float16 what comes close to its end; elsewhere what float16 would not hold."""
    seen = peaks(ran.traces)
    if ran.name == "float16":
        near = [p for p in seen.values() if p.site in ran.stored and p.absmax > NEAR * FP16_MAX]
        severity = "warning"
        remedy = "isobit generate MODEL -tp N --dtype bfloat16 -p TEXT"
        what, threshold, source = "comes near the end of float16", NEAR * FP16_MAX, HEADROOM
    else:
        near = [peak for peak in seen.values() if peak.absmax > FP16_MAX]
        severity, remedy = "note", f"keep this model in {ran.name}"
        what, threshold = "would overflow in float16", FP16_MAX
        source = f"{BINARY16}; isobit keeps sums and the residual stream in float32"
    if not near:
        return []
    return [
        Finding(
            check=NAME,
            severity=severity,
            what=f"{near[0].site} {what}: absmax {near[0].absmax:.4g} on rank {near[0].rank}"
            + (f", and {len(near) - 1} more sites" if len(near) > 1 else ""),
            site=near[0].site,
            layer=layer_of(near[0].site),
            op=op_of(near[0].site),
            rank=near[0].rank,
            evidence=tuple(
                Evidence(
                    what=f"absmax of {peak.site}, rank {peak.rank}",
                    measured=peak.absmax,
                    threshold=threshold,
                    source=source,
                )
                for peak in sorted(near, key=lambda peak: -peak.absmax)[:4]
            ),
            remedy=remedy,
        )
    ]


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in ranks)
