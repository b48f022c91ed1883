"""Whether ranks reach each other's device memory, tried in processes of their own.

Where CUDA is wrong about it, a kernel that touches memory of a peer can fault, and a fault ends the
context of its process: nothing of a rank would be left to fall back. So a child of every rank
writes to each peer and reads from it first, and its end is an answer like any other.

`python -m isobit.runtime.collectives.cuda.probe INDEX RANK DEGREE` is such a child. It answers
lines on its standard input: "share", "open HANDLE ...", "check".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

import torch

from isobit.errors import EnvironmentFault

from ....kernels.gpu.peers import touch_peers
from .driver import CudaDriver, Driver

WORD_BYTES = 8


def probe_peers(
    driver: Driver, rank: int, degree: int, tell: Callable[[str], Sequence[str]]
) -> str:
    """Why ranks do not use each other's device memory, the same text everywhere; empty where every
    child reached every other."""
    child, wrong, answer = None, "", ""
    try:
        child = driver.start_probe(rank, degree)
    except (EnvironmentFault, OSError) as error:
        wrong = f"{getattr(error, 'message', error)}"
    try:
        for question in ("share", "open", "check"):
            if child is not None and not wrong:
                try:
                    answer = child.ask(f"{question} {answer}")
                except EnvironmentFault as fault:
                    wrong = fault.message
            told = [text.partition("\n") for text in tell(f"{answer}\n{wrong}")]
            if faults := [f"rank {peer}: {text}" for peer, (_, _, text) in enumerate(told) if text]:
                return "; ".join(faults)
            answer = " ".join(handle for handle, _, _ in told)
    finally:
        if child is not None:
            child.end()
    return ""


def serve(
    driver: Driver, device: torch.device, rank: int, degree: int, asked: TextIO, said: TextIO
) -> None:
    """Answer until nothing more is asked."""
    own = 0
    for line in asked:
        question, *handles = line.split()
        try:
            if question == "share":
                own = driver.allocate(degree * WORD_BYTES)
                _touched([own] * degree, device, rank)
                answer = driver.share(own).hex()
            elif question == "open":
                _check(_touched(_opened(driver, handles, own, rank), device, rank), "read from")
                answer = ""
            else:
                _check(_touched([own] * degree, device, rank), "received from")
                answer = ""
            said.write(f"ok {answer}\n")
        except (EnvironmentFault, RuntimeError) as error:
            text = str(getattr(error, "message", error)).splitlines()[0]
            said.write(f"wrong {text}\n")
        said.flush()


def _opened(driver: Driver, handles: Sequence[str], own: int, rank: int) -> list[int]:
    addresses = []
    for peer, handle in enumerate(handles):
        try:
            addresses.append(own if peer == rank else driver.open(bytes.fromhex(handle)))
        except (EnvironmentFault, RuntimeError) as error:
            text = getattr(error, "message", error)
            raise EnvironmentFault("E-COLL-CUDA", f"memory of rank {peer}: {text}") from error
    return addresses


def _touched(addresses: Sequence[int], device: torch.device, rank: int) -> list[int]:
    """Write rank + 1 to its place at each address; what is in place i at address i."""
    regions = torch.tensor(list(addresses), dtype=torch.int64, device=device)
    seen = torch.zeros(len(addresses), dtype=torch.int64, device=device)
    launch = touch_peers(regions, seen, rank)
    launch.load()
    launch.run()
    return seen.tolist()


def _check(seen: Sequence[int], how: str) -> None:
    wrong = [f"{word} {how} rank {peer}" for peer, word in enumerate(seen) if word != peer + 1]
    if wrong:
        raise EnvironmentFault("E-COLL-CUDA", f"not what was written: {', '.join(wrong)}")


def main() -> None:
    index, rank, degree = map(int, sys.argv[1:])
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    serve(CudaDriver(device), device, rank, degree, sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
