"""A driver that listens for two ranks, and ranks that connect to it from the same process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from isobit.runtime.transport.address import Address
from isobit.runtime.transport.driver import DriverLink
from isobit.runtime.transport.rank import RankLink, connect


@pytest.fixture
def host() -> str | None:
    """A Unix socket, where a test does not say otherwise."""
    return None


@pytest.fixture
def driver(host) -> Iterator[DriverLink]:
    link = DriverLink(2, Address(host=host))
    yield link
    link.close()


@pytest.fixture
def join(driver):
    """Connect a rank, perhaps with a ticket that was tampered with."""
    opened: list[RankLink] = []

    def joined(rank: int, **changed: object) -> RankLink:
        opened.append(connect(dataclasses.replace(driver.ticket(rank), **changed)))
        return opened[-1]

    yield joined
    for link in opened:
        link.close()
