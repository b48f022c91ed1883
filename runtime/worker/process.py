"""The life of a rank's process: connect, load, answer steps until told to stop."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from isobit.errors import InternalError, IsobitError, Kind, RankFault

from ...kernels.unexpected import unexpected, wants_traceback
from ...shard.captured_warnings import captured_warnings
from ..model_files.questions import QUESTIONS
from ..transport import interfaces
from ..transport.messages import DriverGone
from ..transport.rank import RankLink, connect
from ..transport.ticket import RankTicket

if TYPE_CHECKING:
    from ..calibration.worker import CalibrationWorker
    from ..model_files.on_host import Download
    from .worker import Worker

log = logging.getLogger("isobit.runtime")


def name_process(ticket: RankTicket) -> None:
    """Have `ps` and `top` show this process as `isobit rank R/N`.

    Its environment stays to be seen, in /proc and by `ps e`: the title takes the place of the
    command line alone.
    """
    os.environ["SPT_NOENV"] = "1"
    from setproctitle import setproctitle

    setproctitle(f"isobit rank {ticket.rank}/{ticket.degree}")


def run_rank(ticket: RankTicket, download: Download | None = None) -> None:
    """Serve one engine from load to stop. Every failure is reported to the driver.

    `download` fetches a model from a hub, where the launcher of this rank knows one. Raises
    EnvironmentFault E-NET-DRIVER when the driver cannot be reached to be told anything.
    """
    if ticket.endpoint.startswith("tcp://"):
        interfaces.check_reachable(*interfaces.split(ticket.endpoint))
    link = connect(ticket)
    link.end_with_driver()
    try:
        _serve(link, ticket, download)
    except DriverGone as error:
        sys.exit(f"isobit: {error}")
    except IsobitError as error:
        link.send(_error(error.code, error.message, error.kind))
    except Exception as error:  # noqa: BLE001
        # The one broad catch of a rank: the driver speaks for it, which has a terminal.
        link.send(_unexpected(error, ticket.rank))
    finally:
        link.close()


def _error(code: str, message: str, kind: Kind) -> dict[str, Any]:
    return {"kind": "error", "code": code, "message": message, "error_kind": kind}


def _unexpected(raised: Exception, rank: int) -> dict[str, Any]:
    """What the driver is told of an exception that has no code."""
    error = unexpected(raised)
    shown = f"\n{''.join(traceback.format_exception(raised))}" if wants_traceback() else ""
    if isinstance(error, InternalError):
        return _error("E-RANK-FAILED", error.message + shown, RankFault.kind)
    return _error(error.code, f"rank {rank}: {error.message}{shown}", error.kind)


def _serve(link: RankLink, ticket: RankTicket, download: Download | None) -> None:
    job, folder = link.receive(), ""
    while job["kind"] in QUESTIONS:
        from ..model_files.on_host import answer

        folder = answer(link, job, ticket.rank, download)
        job = link.receive()
    kind = job.pop("kind")
    if kind == "stop":
        return
    if folder:
        # The files of this host, which need not lie where the driver has them.
        job.get("job", job)["model"] = folder
    # A rank has no terminal that anybody sees: its warnings go to the driver.
    with captured_warnings("isobit") as records:
        worker = _worker(kind, {**job, "rank": ticket.rank, "device": ticket.device})
    warnings = [record.getMessage() for record in records]
    link.send({"kind": "loaded", "warnings": warnings, **worker.report})
    try:
        while (message := link.receive())["kind"] != "stop":
            for answer in worker.answers(message):
                link.hold(answer)
            link.flush()
    finally:
        worker.close()


def _worker(kind: str, job: dict[str, Any]) -> Worker | CalibrationWorker:
    if kind == "calibrate":
        from ..calibration.worker import CalibrationWorker

        return CalibrationWorker(job)
    from .worker import Worker, job_from_message

    return Worker(job_from_message(job))
