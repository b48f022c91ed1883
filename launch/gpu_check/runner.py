"""Running the ladder: processes with a time limit, each result told and written as it comes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO

from .child import files_of, run_step
from .ladder import Rung
from .place import Place, place_fields

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
GRACE_S = 3.0
"""How long the other ranks may go on after one has failed, to say how they ended."""
POLL_S = 0.02
LOG_LINES = 25
# Processes fork from one that has imported torch and has never touched CUDA.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isobit.launch.gpu_check.preload"])
Result = dict[str, Any]


class Journal:
    """The results so far, one JSON object a line: on the disk as soon as they are known."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def climb(
    rungs: Sequence[Rung],
    journal: Journal,
    on_result: Callable[[Result], None],
    *,
    rehearsal: bool,
    seconds: float,
    limits: Mapping[str, float] | None = None,
    on_start: Callable[[Rung], None] = lambda rung: None,
) -> list[Result]:
    """Every rung within `seconds` altogether; what there is no time for is told as not run.

    `limits`, by step, replace the limits of the steps in seconds.
    """
    ends, results = time.monotonic() + seconds, []
    for rung in rungs:
        left = ends - time.monotonic()
        on_start(rung)
        if rung.not_run:
            result = _result(rung, NOT_RUN, rung.not_run)
        elif left <= 0:
            result = _result(rung, FAILED, f"the {seconds:.0f} s were used up", how="no time left")
        else:
            most_s = (limits or {}).get(rung.step.name, rung.step.most_s)
            result = run_rung(rung, rehearsal=rehearsal, most_s=min(left, most_s))
        journal.write(result)
        results.append(result)
        on_result(result)
    return results


def run_rung(rung: Rung, *, rehearsal: bool, most_s: float) -> Result:
    """Start the processes of a step, wait for their end, and say what came of it."""
    began = time.monotonic()
    with _scratch() as folder:
        processes = []
        gpus = rung.gpus
        for rank in range(rung.step.ranks):
            place = Place(gpus=gpus, rank=rank, folder=folder, rehearsal=rehearsal)
            process = SERVER.Process(
                target=run_step,
                args=(
                    rung.step.name,
                    rung.step.function,
                    place_fields(place),
                    dict(os.environ),
                ),
            )
            process.start()
            processes.append(process)
        try:
            late, cut = _wait(processes, folder, most_s)
        finally:
            for process in processes:
                _end(process)
        ends = [
            _ended(process, folder, rank, most_s, late=rank in late, cut=cut)
            for rank, process in enumerate(processes)
        ]
        found = _rows(folder, 0)
        log = _log(folder, rung.step.ranks) if any(end[0] == FAILED for end in ends) else ""
    failures = [(rank, what, how) for rank, (status, what, how) in enumerate(ends)
                if status == FAILED]  # fmt: skip
    seconds = time.monotonic() - began
    if failures:
        several = rung.step.ranks > 1
        said = [f"rank {rank}: {what}" if several else what for rank, what, _ in failures]
        return _result(
            rung, FAILED, "; ".join(said), how=failures[0][2], rows=found, seconds=seconds, log=log
        )
    left_out = [what for status, what, _ in ends if status == NOT_RUN]
    if left_out:
        return _result(rung, NOT_RUN, left_out[0], seconds=seconds)
    return _result(rung, PASSED, "", rows=found, seconds=seconds)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="isobit-gpu-check-", ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


def _wait(processes: Sequence[BaseProcess], folder: Path, most_s: float) -> tuple[set[int], bool]:
    """Wait for all ends: the ranks that had none, and whether that is since another had failed."""
    ends, cut = time.monotonic() + most_s, False
    while True:
        running = {rank for rank, process in enumerate(processes) if process.is_alive()}
        if not running or time.monotonic() >= ends:
            return running, cut
        gone = set(range(len(processes))) - running
        if not cut and any(_final(folder, rank)[0] not in (PASSED, NOT_RUN) for rank in gone):
            ends, cut = min(ends, time.monotonic() + GRACE_S), True
        time.sleep(POLL_S)


def _end(process: BaseProcess) -> None:
    """The process and all that it has started."""
    if process.is_alive() and process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()


def _ended(
    process: BaseProcess, folder: Path, rank: int, most_s: float, *, late: bool, cut: bool
) -> tuple[str, str, str]:
    """Status, what it said, and how a process ended."""
    status, what, how = _final(folder, rank)
    if status:
        return status, what, how
    if late:
        # What the other rank's failure left waiting has nothing of its own to say.
        return ("", "", "") if cut else (FAILED, f"no end within {most_s:.0f} s", "hung")
    return FAILED, _death(process.exitcode), "died"


def _final(folder: Path, rank: int) -> tuple[str, str, str]:
    """What a process wrote last; empty texts where it did not come to that."""
    lines = [line for line in _lines(folder, rank) if "end" in line]
    return (lines[-1]["end"], lines[-1]["what"], lines[-1]["how"]) if lines else ("", "", "")


def _rows(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [line["row"] for line in _lines(folder, rank) if "row" in line]


def _lines(folder: Path, rank: int) -> list[dict[str, Any]]:
    """Whole lines: the last one of a process that was killed may be cut."""
    found = []
    with contextlib.suppress(OSError):
        for line in files_of(folder, rank)[0].read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def _log(folder: Path, ranks: int) -> str:
    texts = []
    for rank in range(ranks):
        with contextlib.suppress(OSError):
            lines = files_of(folder, rank)[1].read_text(errors="replace").splitlines()
            texts += [f"rank {rank}: {line}" if ranks > 1 else line for line in lines[-LOG_LINES:]]
    return "\n".join(texts)


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with status {code}, without a result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = ""
    return f"was killed by signal {-code} {name}".strip()


def _result(
    rung: Rung,
    status: str,
    what: str,
    *,
    how: str = "",
    rows: Sequence[dict[str, Any]] = (),
    seconds: float = 0.0,
    log: str = "",
) -> Result:
    result: Result = {
        "step": rung.step.name,
        "title": rung.step.title,
        "place": rung.place,
        "gpus": list(rung.gpus),
        "status": status,
        "what": what,
        "how": how,
        "seconds": round(seconds, 2),
        "rows": list(rows),
    }
    return result | ({"log": log} if log else {})
