"""Write the golden checkpoints beside this file with the packages that define their formats.

The tests read what this script wrote and never run it; README.md describes every case, and how
to install the packages. Then

    python tests/golden/make.py [--compressed-tensors-0.15 DIR] [CASE ...]

Every case becomes a folder with config.json, model.safetensors (the quantized model) and
expected.safetensors: `<module>.weight` fp32 [N, K] as the package dequantizes it, `ids` int64 [T]
and `logits` fp32 [T, V]. Seeds are fixed: a second run writes the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from making.cases import CASES, OLDER
from making.expected import write_expected

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "GPTQMODEL_CPU_WORKERS": "2",  # its default, half the cores, is refused on small machines
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # the compiled packer; the plain one writes the same
}


def make(name: str) -> None:
    torch.use_deterministic_algorithms(True)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_expected(folder, CASES[name](folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--compressed-tensors-0.15", dest="older", metavar="DIR", type=Path)
    parser.add_argument("--here", action="store_true", help="in this process, not one per case")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    for name in arguments.cases or CASES:
        if arguments.here:
            make(name)
            continue
        environment = os.environ | ENVIRONMENT
        if name in OLDER:
            if arguments.older is None:
                print(f"{name}: left as it is, needs --compressed-tensors-0.15")
                continue
            environment["PYTHONPATH"] = str(arguments.older.resolve())
        command = [sys.executable, HERE / "make.py", "--here", name]
        with TemporaryDirectory() as scratch:  # GPTQModel writes logs where it runs
            done = subprocess.run(
                command, env=environment, cwd=scratch, capture_output=True, text=True, check=False
            )
        print(f"{name}: {'made' if done.returncode == 0 else 'failed'}")
        if done.returncode:
            sys.exit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
