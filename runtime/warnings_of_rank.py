"""Warnings of a rank, carried to the driver: a rank has no terminal that anybody sees."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self.lines:
            self.lines.append(line)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that fills with this package's warnings, each once, instead of printing them."""
    logger, collector = logging.getLogger("isobit"), _Collector()
    propagate = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collector.lines
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate
