"""A part of the bench as child processes: a fault of CUDA ends one, the next goes on behind it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

TIME_UP = "time was up"


def streamed(
    command: Sequence[str], seconds: float, on_line: Callable[[dict[str, Any]], None]
) -> str | None:
    """Run `python COMMAND`, hand on each line of JSON as it comes; what went wrong, or None.

    A child that is not done in time is killed; its lines have been handed on by then.
    """
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, complaints = process.stdout, process.stderr
    if output is None or complaints is None:
        raise RuntimeError("pipes were asked for")
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(max(0.1, seconds), stop)
    errors: list[str] = []
    reader = threading.Thread(target=lambda stream: errors.extend(stream), args=(complaints,))
    timer.start(), reader.start()
    try:
        for line in output:
            on_line(json.loads(line))
        status = process.wait()
    finally:
        timer.cancel()
        process.kill()
        reader.join()
    if late.is_set():
        return TIME_UP
    if not status:
        return None
    said = [line.strip() for line in errors if line.strip()]
    return said[-1] if said else f"ended with status {status}"


def resumed(
    command: Callable[[int], Sequence[str]],
    count: int,
    seconds_left: Callable[[], float],
    on_row: Callable[[int, dict[str, Any]], None],
    on_error: Callable[[int, str], None],
) -> int:
    """Items 0 to `count` of children that begin at an item and give one line for each.

    After an item that ended its child another one begins behind it. Returns how many items were
    begun within the time.
    """
    at = 0

    def take(line: dict[str, Any]) -> None:
        nonlocal at
        on_row(at, line)
        at += 1

    while at < count and seconds_left() > 0:
        error = streamed(command(at), seconds_left(), take)
        if error == TIME_UP or (error is None and at < count):
            break
        if error is not None:
            on_error(at, error)
            at += 1
    return at
