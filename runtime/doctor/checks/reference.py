"""Check 8: how far the model is from what it was made from, and what of that is whose fault.

Four steps lead from the reference to what the ranks answer, and each is measured by itself: the
weights are quantized; the run rounds activations; the model is cut; sums are added in some order.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from isobit.errors import InputError
from isobit.findings import Evidence, Finding, Severity

from ...evaluation.logits_file import LogitsFile
from ...evaluation.score_samples import Exchange, Scores, positions_of, score
from ...host_memory import available_memory
from ...scheduler.kv_pages import with_pages_for
from ...settings.engine import EngineSettings, SamplingSettings
from ...trace.index import shape_of
from ..context import Context
from ..damage import Sample, measure_damage, memory, plain_logits, work
from ..findings import skipped
from ..plain_model import PlainModel
from ..repair import proposal

NAME = "reference"
MOST_KL, SUSPECT_KL = 0.2, 0.1
KL_SOURCE = (
    "docs/quantization.md: 4 bits in groups of 32 cost a model without outliers 0.02 to 0.11 nats, "
    "one with outliers 0.38 to 0.80"
)
TEXT_TOKENS, QUICK_TOKENS = 64, 24
MOST_WORK = 3e12
"""Multiplications: some minutes of two cores."""
SPARE = 0.8
MODEL_DTYPE = "auto"
CAUSES = {"sharding": "cutting the model", "reduction_order": "the order of sums"}


def check_reference(context: Context) -> list[Finding]:
    """Measure the loss against `--reference`; without one, the run against its own weights."""
    case = context.case
    # Ranks that were lost would be lost again.
    spec = context.ranks().spec
    if case.reference is None and (case.quick or spec.quantization is None):
        what = "no --reference was given: what quantization cost is not known"
        return [Finding(check=NAME, severity="note", what=what)] if spec.quantization else []
    try:
        reference = None if case.reference is None else _plain(context, case.reference)
    except InputError as error:
        return [_no_use(f"{case.reference}: {error.code} {error.message.splitlines()[0]}")]
    if reference is not None and shape_of(reference.spec) != shape_of(spec):
        return [_no_use(f"{case.reference} has another shape than {case.model}")]
    if reference is not None and reference.spec.quantization is not None:
        return [_no_use(f"{case.reference} is quantized itself")]
    tokens = len(case.prompts) * _text_tokens(context)
    tokens += sum(map(len, case.prompts))
    free = available_memory()
    if work(spec, tokens, False) > MOST_WORK or (free is not None and _needed(context) > free):
        way = "isobit evaluate MODEL --reference REFERENCE --text FILE measures it on all ranks"
        return [skipped(NAME, f"the model is too large for plain torch on this host. {way}")]
    samples = _text(context)
    if not samples:
        return [_no_use("the reference gives no text: its logits are not finite")]
    context.measure("text", [sample.ids for sample in samples])
    found = [] if reference is None else _quantization(context, reference, samples)
    return found if case.quick else found + _run(context, samples)


def _plain(context: Context, model: Path) -> PlainModel:
    """A model as plain torch, with the rotary factors that the case has."""
    return PlainModel(model, context.case.engine.max_model_len)


def _needed(context: Context) -> float:
    """Bytes: for plain torch, or for the reference's own ranks, which are there before it."""
    files = [] if context.case.reference is None else context.case.reference.glob("*.safetensors")
    whole = sum(path.stat().st_size for path in files)
    return max(memory(context.prepared()[0]), whole) / SPARE


def _text_tokens(context: Context) -> int:
    case = context.case
    room = context.prepared()[0].max_positions - max(map(len, case.prompts))
    return max(1, min(QUICK_TOKENS if case.quick else TEXT_TOKENS, room))


def _text(context: Context) -> list[Sample]:
    """The prompts with what the reference says after them, at temperature 1: its own language."""
    case, tokens = context.case, _text_tokens(context)
    model = case.reference or case.model
    settings = dataclasses.replace(
        _untraced(context.settings(1 if case.reference else case.degree)), dtype=MODEL_DTYPE
    )
    sampling = SamplingSettings(max_tokens=tokens, temperature=1.0, ignore_eos=True)
    prompts = [list(prompt) for prompt in case.prompts]
    with context.engine(
        with_pages_for(settings, [len(p) + tokens for p in case.prompts]), model
    ) as engine:
        done = engine.generate(prompts, [sampling] * len(prompts)).completions
    return [
        Sample(ids=prompt + each.tokens, begin=len(prompt))
        for prompt, each in zip(prompts, done, strict=True)
        if each.tokens
    ]


def _untraced(settings: EngineSettings) -> EngineSettings:
    return dataclasses.replace(settings, trace=None, examine=False)


def _quantization(
    context: Context, reference: PlainModel, samples: Sequence[Sample]
) -> list[Finding]:
    """The same plain arithmetic on the weights before and after quantization."""
    case = context.case
    tokens = sum(len(sample.ids) for sample in samples)
    alone = work(reference.spec, tokens, True) <= MOST_WORK
    damage = measure_damage(_plain(context, case.model), reference, samples, alone)
    if not math.isfinite(damage.perplexity):
        return [_no_use("plain float32 on these weights is not finite: see the numbers check")]
    context.measure("quantization", dataclasses.asdict(damage))
    assert case.reference is not None
    repair = proposal(case.model, case.reference, reference.spec, damage, SUSPECT_KL)
    context.measure("proposal", repair.report())
    if damage.kl <= SUSPECT_KL:
        return []
    worst = repair.ranked[0]
    bad = damage.kl > MOST_KL
    what = (
        f"quantization takes the model {damage.kl:.3g} nats from its reference (perplexity "
        f"{damage.reference_perplexity:.4g} to {damage.perplexity:.4g}), most of it in {worst.name}"
    )
    evidence = (
        Evidence(
            what="mean KL divergence, reference || quantized weights, both in plain float32",
            measured=float(f"{damage.kl:.4g}"),
            threshold=MOST_KL,
            source=KL_SOURCE,
        ),
        Evidence(what="bits per layer that would do", measured=repair.bits()),
        *(
            Evidence(
                what=f"{half.name}: divergence when it alone is quantized, nats",
                measured="not measured" if half.kl is None else float(f"{half.kl:.3g}"),
                source="" if half.sqnr_db is None else f"signal to noise {half.sqnr_db:.1f} dB",
            )
            for half in repair.ranked[:3]
        ),
    )
    return [
        Finding(
            check=NAME,
            severity="error" if bad else "warning",
            verdict="quantization-loss" if bad else "healthy",
            what=what,
            site=worst.name,
            layer=worst.layer,
            op=worst.name.rpartition(".")[2],
            evidence=evidence,
            reason="the same weights are as far off in plain torch, without any kernel of isobit",
            remedy=repair.command,
        )
    ]


def _run(context: Context, samples: Sequence[Sample]) -> list[Finding]:
    """The ranks against plain torch on the same weights, then degrees and orders of sums."""
    case, degree = context.case, context.case.degree
    ids = [sample.ids for sample in samples]
    logits = torch.cat(plain_logits(_plain(context, case.model), samples)).numpy()
    scored = torch.cat([_mask(sample) for sample in samples]).nonzero().flatten().tolist()
    with tempfile.TemporaryDirectory() as folder:
        plain = Exchange(path=Path(folder) / "plain", mode="read")
        file = LogitsFile(path=plain.path, vocabulary=logits.shape[1])
        file.reserve(positions_of(ids))
        file.write(range(len(logits)), logits)
        whole = _scores(context, 1, None, ids, plain)
    rounding = math.fsum(whole.divergences[place] for place in scored) / len(scored)
    parts = {"rounding": rounding, "sharding": 0.0, "reduction_order": 0.0}
    if degree > 1:
        cut = _scores(context, degree, "gather", ids)
        parts["sharding"] = _largest_change(whole, cut)
        parts["reduction_order"] = _largest_change(cut, _scores(context, degree, None, ids))
    context.measure("run", parts)
    return _run_findings(parts, case.engine.all_reduce == "library")


def _scores(
    context: Context,
    degree: int,
    all_reduce: str | None,
    ids: list[list[int]],
    exchange: Exchange | None = None,
) -> Scores:
    settings = _untraced(context.settings(degree, all_reduce))
    with context.engine(with_pages_for(settings, [max(map(len, ids))])) as engine:
        return score(engine, ids, exchange)


def _mask(sample: Sample) -> torch.Tensor:
    mask = torch.zeros(len(sample.ids) - 1, dtype=torch.bool)
    mask[sample.rows] = True
    return mask


def _largest_change(one: Scores, other: Scores) -> float:
    """Of a token's log-probability; 0 where all bits are equal."""
    pairs = zip(one.log_probabilities, other.log_probabilities, strict=True)
    return max(abs(a - b) for a, b in pairs)


def _run_findings(parts: dict[str, float], library: bool) -> list[Finding]:
    found = []
    # A number that is NaN is not small.
    if not parts["rounding"] <= SUSPECT_KL:
        evidence = Evidence(
            what="mean KL divergence in nats, plain float32 || tp 1",
            measured=parts["rounding"],
            threshold=SUSPECT_KL,
            source=KL_SOURCE,
        )
        what = (
            f"one rank answers {parts['rounding']:.3g} nats away from plain float32 on the same "
            "weights"
        )
        remedy = "isobit doctor MODEL -tp N --dtype float32: what remains is no rounding"
        found.append(_apart("error", what, evidence, remedy))
    for name, cause in CAUSES.items():
        if not (value := parts[name]):
            continue
        outside = library and name == "reduction_order"
        evidence = Evidence(
            what="largest change of a token's log-probability, nats",
            measured=value,
            threshold=0,
            source="the numeric contract: the same bits at every tensor-parallel size",
        )
        what = f"{cause} changes log-probabilities by up to {value:.3g}"
        what += ": outside the contract, --all-reduce library" if outside else ""
        remedy = "isobit verify MODEL -tp 1,N"
        found.append(_apart("note" if outside else "error", what, evidence, remedy))
    return found


def _apart(severity: Severity, what: str, evidence: Evidence, remedy: str) -> Finding:
    return Finding(
        check=NAME,
        severity=severity,
        verdict="healthy" if severity == "note" else "kernel-fault",
        what=what,
        evidence=(evidence,),
        confidence="low",
        reason="the end of the pass is compared, not where it began to differ",
        remedy=remedy,
    )


def _no_use(why: str) -> Finding:
    return Finding(check=NAME, severity="warning", what=f"not compared with the reference: {why}")
