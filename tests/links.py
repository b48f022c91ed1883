"""Both ends of a link in one process."""

from __future__ import annotations

import pytest

from isobit.errors import RankFault
from isobit.runtime.transport.driver import DriverLink
from isobit.runtime.transport.tcp import TcpDriver

BOTH_SILENT = "waiting: no answer within 0 s from rank 0, rank 1"
BOTH_TRANSPORTS = pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["unix", "tcp"])


def nobody() -> dict[int, str]:
    """Ranks that have ended: none."""
    return {}


def greetings(driver: DriverLink, timeout_s: float = 20) -> dict[int, dict]:
    return driver.collect("hello", "greeting", timeout_s, nobody, stop_at_error=True)


def silence(driver: DriverLink, kind: str = "hello") -> str:
    """What the driver says when a message has come in and is not of those it waits for."""
    # A message is there as soon as it is sent, but by TCP.
    if isinstance(driver._transport, TcpDriver):
        assert driver._transport._socket.poll(20_000)
    with pytest.raises(RankFault) as caught:
        driver.collect(kind, "waiting", 0, nobody, stop_at_error=True)
    assert caught.value.code == "E-RANK-TIMEOUT"
    return caught.value.message
