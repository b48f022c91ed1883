"""The inspection of a model folder from beginning to end."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from isobit.errors import InputError
from isobit.findings import Finding, worst_first

from ..captured_warnings import captured_warnings
from ..checkpoint.checkpoint import Scan, scan_checkpoint
from ..checkpoint.safetensors_file import TensorEntry
from ..contents.expected_tensors import stored_intermediate_size
from ..contents.stored_head import with_stored_head
from ..model.spec import ModelSpec
from ..plan.plan import PlanSettings, make_plan
from ..torch_threads import one_thread
from .contents import Contents, check_contents, leftover_findings
from .damage import damage_findings, damage_report
from .findings import from_error, verdict
from .group_index import apart_findings, group_index_findings, index_report
from .labels import read_labels
from .layout import index_findings, layout_findings, sha256_of
from .quantized import NESTED_SCALES, QuantizedModule
from .scales import ScaleStats, scale_findings, scale_report
from .summary import Report, file_report, format_report, tensor_report, zero_point_report
from .tensors import NumberCount, TensorStream, count_numbers
from .values import not_finite_findings, stored_shape_findings, zero_tensor_findings
from .weights import WeightHealth, examine
from .zero_points import StoredZeros, zero_findings

THREADS = min(4, os.cpu_count() or 1)
"""Some read while others count. Each holds one quantized weight, and other tensors in pieces."""
Progress = Callable[[int, int], None]
_AGAIN = "fetch the file again, or compare its SHA-256 (--sha256) with the published one"


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A tensor, or all parts of a quantized weight by their short names."""

    entries: dict[str, TensorEntry]
    module: QuantizedModule | None = None

    @property
    def place(self) -> tuple[str, int]:
        first = min(self.entries.values(), key=lambda entry: entry.begin)
        return first.file.name, first.begin


@dataclass(kw_only=True)
class _Seen:
    """What reading all tensors brought to light, in the order of the jobs."""

    numbers: dict[str, NumberCount] = field(default_factory=dict)
    weights: list[WeightHealth] = field(default_factory=list)
    errors: list[InputError] = field(default_factory=list)
    digests: dict[Path, str] = field(default_factory=dict)
    bytes_read: int = 0


def inspect_folder(
    folder: Path, *, sha256: bool = False, progress: Progress = lambda done, total: None
) -> Report:
    """Inspect a model folder; `progress(done, total)` counts bytes and is called from threads.

    Raises InputError when there is nothing to inspect: E-CKPT-FORMAT (only pickles or other
    formats) or E-CKPT-MISSING (no weights). Whatever else is wrong becomes a finding.
    """
    scan = scan_checkpoint(folder)
    labels = read_labels(folder)
    findings = [_scan_finding(error, folder, scan) for error in scan.errors] + labels.findings
    findings += [*index_findings(scan), *layout_findings(folder, scan)]
    contents = None
    if labels.spec is not None and scan.checkpoint.entries:
        spec, found = _with_stored_head(scan, labels.spec)
        contents = check_contents(scan, spec)
        findings += [*found, *contents.findings]
        findings += leftover_findings(scan, contents.spec, contents.unexpected)
        findings += _plan_findings(scan, contents.spec, folder)
    jobs = _jobs(scan, contents)
    started = time.perf_counter()
    seen = _read(jobs, scan.files if sha256 else [], progress)
    seconds = time.perf_counter() - started
    findings += [from_error(error, folder, _AGAIN) for error in seen.errors]
    findings += _data_findings(seen, contents)
    findings = worst_first(findings)
    indices = [(health.module, health.index) for health in seen.weights]
    return Report(
        model=str(folder),
        verdict=verdict(findings),
        findings=findings,
        format=format_report(contents.spec if contents else None, labels.method, seen.weights),
        files=file_report(scan.files, scan.checkpoint.entries, seen.digests),
        tensors=tensor_report(
            scan.checkpoint.entries,
            _all_numbers(seen),
            contents.missing if contents else (),
            contents.unexpected if contents else (),
        ),
        scales=scale_report(_scales(seen)),
        zero_points=zero_point_report(seen.weights),
        g_idx=index_report(indices),
        damage=damage_report(seen.weights),
        throughput_mb_s=round(seen.bytes_read / max(seconds, 1e-9) / 1e6, 1),
    )


def _with_stored_head(scan: Scan, spec: ModelSpec) -> tuple[ModelSpec, list[Finding]]:
    """The spec with the head that the files have, and what there is to say about it."""
    with captured_warnings("isobit.shard") as records:
        try:
            spec = with_stored_head(spec, scan.checkpoint)
        except InputError:
            return spec, []  # a file that cannot be read is a finding of its own
    return spec, [
        Finding(
            severity="warning",
            code="W-CKPT-HEAD",
            where="config.json: tie_word_embeddings",
            what=record.getMessage().partition(": ")[2],
            remedy="set tie_word_embeddings to false in config.json",
        )
        for record in records
    ]


def _plan_findings(scan: Scan, spec: ModelSpec, folder: Path) -> list[Finding]:
    """Why no plan can be made for these sizes, on any number of ranks."""
    try:
        make_plan(spec, PlanSettings(), stored_intermediate_size(scan.checkpoint))
    except InputError as error:
        return [from_error(error, folder, "see the message")]
    return []


def _scan_finding(error: InputError, folder: Path, scan: Scan) -> Finding:
    """An error of reading headers; with a truncated file come the names of the tensors cut off."""
    finding = from_error(error, folder, _AGAIN)
    entries = scan.checkpoint.entries
    lost = [name for name in sorted(scan.beyond) if entries[name].file.name == finding.where]
    if error.code == "E-CKPT-TRUNCATED" and lost:
        return dataclasses.replace(finding, numbers={"tensors": lost})
    return finding


def _jobs(scan: Scan, contents: Contents | None) -> list[_Job]:
    """Everything whose data are there, in the order of the files."""
    entries = {n: e for n, e in scan.checkpoint.entries.items() if n not in scan.beyond}
    jobs, taken = [], set()
    for module in contents.modules if contents else ():
        assert contents is not None
        parts = _parts(module, entries, contents.fitting)
        if parts is not None:
            jobs.append(_Job(entries=parts, module=module))
            taken.update(entry.name for entry in parts.values())
    jobs += [_Job(entries={n: entry}) for n, entry in entries.items() if n not in taken]
    return sorted(jobs, key=lambda job: job.place)


def _parts(
    module: QuantizedModule, entries: dict[str, TensorEntry], fitting: set[str]
) -> dict[str, TensorEntry] | None:
    """The parts of a weight, None where one that is needed is absent or does not fit."""
    fits = {*fitting, *module.companions()}
    parts = {
        part: entries[name]
        for part in (module.parts.codes, module.parts.scales, *module.optional_parts())
        if (name := module.tensor(part)) in entries and name in fits
    }
    needed = {module.parts.codes, module.parts.scales}
    scales = parts.get(module.parts.scales)
    if scales is not None and not scales.dtype.is_floating_point:
        needed.add(NESTED_SCALES)
    return parts if needed <= parts.keys() else None


def _read(jobs: Sequence[_Job], hashed: Sequence[Path], progress: Progress) -> _Seen:
    total = sum(entry.nbytes for job in jobs for entry in job.entries.values())
    total += sum(path.stat().st_size for path in hashed)
    done, lock, local = 0, threading.Lock(), threading.local()
    streams: list[TensorStream] = []

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    def work(job: _Job) -> NumberCount | WeightHealth | InputError:
        if not hasattr(local, "stream"):
            local.stream = TensorStream(advance)
            streams.append(local.stream)
        try:
            if job.module is not None:
                return examine(local.stream, job.module, job.entries)
            return count_numbers(local.stream, next(iter(job.entries.values())))
        except InputError as error:
            return error

    seen = _Seen()
    # Our threads share the cores already; torch must not start its own in each.
    with one_thread(), ThreadPoolExecutor(THREADS) as pool:
        try:
            for job, result in zip(jobs, pool.map(work, jobs), strict=True):
                if isinstance(result, InputError):
                    seen.errors.append(result)
                elif isinstance(result, WeightHealth):
                    seen.weights.append(result)
                else:
                    seen.numbers[next(iter(job.entries))] = result
            digests = pool.map(lambda path: sha256_of(path, advance), hashed)
            pairs = zip(hashed, digests, strict=True)
            seen.digests.update({path: digest for path, digest in pairs if digest is not None})
        finally:
            pool.shutdown(cancel_futures=True)
            for stream in streams:
                stream.close()
    seen.bytes_read = done
    return seen


def _data_findings(seen: _Seen, contents: Contents | None) -> list[Finding]:
    numbers, weights = _all_numbers(seen), seen.weights
    unexpected = set(contents.unexpected) if contents else set()
    findings = not_finite_findings(numbers, unexpected)
    findings += zero_tensor_findings(seen.numbers, unexpected)
    indices = [(health.module, health.index) for health in weights]
    zeros = [
        StoredZeros(
            name=health.module.tensor(health.module.parts.zeros),
            scheme=health.module.scheme,
            histogram=health.zeros,
            means=health.means,
        )
        for health in weights
        if health.zeros is not None and health.module.parts.zeros
    ]
    findings += zero_findings(zeros)
    findings += stored_shape_findings(weights)
    findings += group_index_findings(indices)
    findings += scale_findings(_scales(seen))
    findings += damage_findings(weights)
    if contents is not None:
        findings += apart_findings(contents.spec, indices)
    return findings


def _scales(seen: _Seen) -> dict[str, ScaleStats]:
    return {
        health.module.tensor(health.module.parts.scales): health.scales for health in seen.weights
    }


def _all_numbers(seen: _Seen) -> dict[str, NumberCount]:
    """Counts of dense tensors and of scales."""
    scales = {
        name: NumberCount(nan=stats.nan, infinite=stats.infinite, largest=stats.high or 0.0)
        for name, stats in _scales(seen).items()
    }
    return {**seen.numbers, **scales}
