"""Taking warnings instead of printing them, where they belong into a report or another process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def captured_warnings(logger: str) -> Iterator[list[logging.LogRecord]]:
    """Yield a list that fills with the warnings of a logger and those below it."""
    log, collector = logging.getLogger(logger), _Collector()
    propagate = log.propagate
    log.addHandler(collector)
    log.propagate = False
    try:
        yield collector.records
    finally:
        log.removeHandler(collector)
        log.propagate = propagate
