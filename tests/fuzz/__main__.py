"""`python -m tests.fuzz [CASES]`: commands on changed model folders, each in a forked child.

The children come from one process that has imported torch; memory is polled, and a case that passes
a bound is killed. A case is right when every command ends with 0, 1 or 2 within the bounds, speaks
JSON or a coded message, lets no control character through, and inspect refuses what generate
refuses. One case in a hundred runs as real commands. Ends with status 1 and a list when one is not.

`--only N` runs one case and shows what its commands said.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from .bounds import Ended, as_command, forked
from .mutations import make_case
from .verdict import faults_of

EACH_REAL = 100
"""One case in so many runs as real commands: 50 of 5000."""
IDS = ("--prompt-ids", "0", "--max-tokens", "2", "--launcher", "local", "--threads", "1")
TEXT = ("-p", "def main", *IDS[2:])


def commands(kind: str, folder: Path, number: int) -> dict[str, list[str]]:
    """The command lines of a case by name."""
    model = str(folder)
    found = {
        "inspect": ["inspect", model, "--json"],
        "generate": ["generate", model, *IDS, "--json"],
    }
    if number % 4 == 0:
        found["plan"] = ["plan", model, "--json"]
    elif number % 4 == 1:
        found["plan text"] = ["plan", model, "-tp", "2", "--explain"]
    elif number % 4 == 2:
        found["inspect text"] = ["inspect", model]
    if kind.startswith(("tokenizer", "generation")):
        found["generate text"] = ["generate", model, *TEXT, "--json"]
    return found


def run_case(number: int, seed: int, real: bool, show: bool) -> list[str]:
    """What is wrong with a case, nothing where all is right."""
    scratch = Path(tempfile.mkdtemp(prefix="f-", dir="/tmp"))
    try:
        folder = scratch / "model"
        folder.mkdir()
        what, folder = make_case(number, seed, folder)
        ended: dict[str, Ended] = {}
        for name, arguments in commands(what, folder, number).items():
            ended[name] = (as_command if real else forked)(arguments, scratch)
            if show:
                print(f"--- {name}: {ended[name]}")
        return [f"{number} ({what}): {fault}" for fault in faults_of(ended)]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def work(numbers: range, seed: int, path: Path) -> None:
    """One of several processes that share the cases; writes what it finds, a line each."""
    with path.open("w") as out:
        for number in numbers:
            for line in run_case(number, seed, number % EACH_REAL == 0, False):
                out.write(line.replace("\n", "\\n") + "\n")
                print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("cases", type=int, nargs="?", default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # All that a command would import, once.
    import torch

    import isobit.launch.tokenizer.tokenizer
    import isobit.runtime.worker.process
    import isobit.runtime.worker.worker  # noqa: F401
    from isobit.launch.cli.app import make_app

    make_app()

    # A thread of torch's would not live on in a forked child.
    torch.set_num_threads(1)
    if options.only is not None:
        found = run_case(options.only, options.seed, False, True)
        print("\n".join(found) or "nothing wrong")
        return int(bool(found))
    started, total = time.monotonic(), options.first + options.cases
    with tempfile.TemporaryDirectory(prefix="fuzz-") as results:
        children = []
        for job in range(options.jobs):
            path = Path(results) / str(job)
            numbers = range(options.first + job, total, options.jobs)
            child = os.fork()
            if not child:
                status = 1
                try:
                    work(numbers, options.seed, path)
                    status = 0
                except Exception:  # noqa: BLE001
                    traceback.print_exc()
                finally:
                    os._exit(status)
            children.append(child)
        broken = [child for child in children if os.waitpid(child, 0)[1]]
        lines = [line for path in Path(results).iterdir() for line in path.read_text().splitlines()]
    kinds = collections.Counter(line.split("): ", 1)[1].split(":")[0] for line in lines)
    seconds = time.monotonic() - started
    print(f"{options.cases} cases in {seconds:.0f} s, {len(lines)} faults: {dict(kinds)}")
    return int(bool(lines or broken))


if __name__ == "__main__":
    sys.exit(main())
