"""From the command to the first token: the example model, page cache warm.

    python -m bench.first_token [--tensor-parallel-size 1 2] [--repeat 5] [--model FOLDER]

Prints the median and all times. What a run is: `isobit generate MODEL -p ... --max-tokens 1
--launcher local`, from the start of the process until its standard output holds more than the
prompt. `--profile` prints instead which imports of the driver take longest.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from io import BufferedReader
from pathlib import Path
from typing import cast

EXAMPLE = Path(__file__).parents[1] / "examples" / "stdlib-qwen2-int4"
PROMPT = "def read"
SHOWN = 25


def first_token_s(model: Path, degree: int) -> float:
    """Seconds from the start of the command until the first text behind the prompt."""
    command = [sys.executable, "-m", "isobit.launch.cli", "generate", str(model)]
    options = ["-p", PROMPT, "--max-tokens", "1", "--launcher", "local", "-tp", str(degree)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        output = cast("BufferedReader", process.stdout)
        seen = b""
        while len(seen) <= len(PROMPT) and (more := output.read1(4096)):
            seen += more
        taken = time.perf_counter() - started
        output.read()
    if process.returncode or len(seen) <= len(PROMPT):
        raise SystemExit(f"{' '.join([*command, *options])} failed: {process.returncode}")
    return taken


def print_profile() -> None:
    """The imports of `isobit generate` that take longest, with what they import."""
    code = "import sys; sys.argv[1:] = ['generate', '--help']; from isobit.launch.cli import app; "
    code += "app.make_app('generate')"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines()[1:]]
    rows = [row for row in rows if len(row) == 3]
    for _, total, name in sorted(rows, key=lambda row: -int(row[1]))[:SHOWN]:
        print(f"{int(total) / 1e6:8.3f} s  {name.rstrip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=EXAMPLE)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.profile:
        print_profile()
        return
    for degree in given.tensor_parallel_size:
        times = [first_token_s(given.model, degree) for _ in range(given.repeat)]
        shown = ", ".join(f"{each:.2f}" for each in times)
        print(f"tp {degree}: median {statistics.median(times):.2f} s ({shown})", flush=True)


if __name__ == "__main__":
    main()
