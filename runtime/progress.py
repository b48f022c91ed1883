"""Long work inside the runtime, seen by whoever has a terminal: the runtime itself has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

OnBytes = Callable[[int, int], None]
"""`on_bytes(done, total)`, from any thread but one at a time."""
Watcher = Callable[[str], AbstractContextManager[OnBytes]]
"""`watcher(what)`: told of work when it begins and, by the context's end, when it is over."""


def _unseen(done: int, total: int) -> None:
    del done, total


_watcher: ContextVar[Watcher] = ContextVar("watcher", default=lambda what: nullcontext(_unseen))


def progress(what: str) -> AbstractContextManager[OnBytes]:
    """Announce work on bytes to the watcher of this context, if there is one."""
    return _watcher.get()(what)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Have `watcher` told of the work done in the block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
