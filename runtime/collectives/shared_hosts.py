"""Which ranks share a host: those whose launcher says so, and who can show it.

Names alone do not tell. Two containers of one machine may have a name in common and no memory, and
two hosts may have the same name. Ranks share a host when each can open what the other has put into
shared memory.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ...shard.plan.hosts import consecutive
from ..transport.process_group import exchange

PURPOSE = "finding out which ranks share memory"


def shared_hosts(names: Sequence[str], rank: int) -> tuple[range, ...]:
    """Runs of neighbouring ranks that share memory, and a name among the `names` of all ranks.

    Every rank of the default process group makes this call and gets the same answer. Raises
    ImportError where the C++ part is missing, RankFault E-COLL-FAILED where a rank is gone.
    """
    from . import _shared

    degree, token = len(names), f"/isobit-{secrets.token_hex(8)}"
    # One who cannot place a token is seen by nobody, and so shares its host with nobody.
    _shared.place_token(token)
    try:
        tokens = exchange(token, rank, degree, PURPOSE)
        seen = [
            other
            for other in range(degree)
            if names[other] == names[rank] and _shared.sees_token(tokens[other])
        ]
        views = exchange(f"{seen or rank} {names[rank]}", rank, degree, PURPOSE)
    finally:
        _shared.unlink_memory(token)
    return consecutive(views)
