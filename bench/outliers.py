"""What each method of quantization saves of a model with outliers.

    python -m bench.outliers [--kind outliers|skewed|plain] [--only TEXT] [--out FILE.json]

tests/pathologies.py makes the model out of examples/stdlib-qwen2. Every row is one
`isobit quantize` and one `isobit evaluate` against the dense model. Calibrates on files of Python's
standard library, which the model was trained on, and evaluates on others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from tests.pathologies import KINDS, SOURCE, make

CALIBRATED_ON = ("argparse.py", "ast.py", "asyncio/base_events.py")
EVALUATED_ON = ("tarfile.py", "zipfile.py")
ROWS = (
    "--scheme int4",
    "--scheme int4 --mse",
    "--scheme int4 --asymmetric",
    "--method gptq",
    "--method gptq --mse",
    "--method gptq --desc-act",
    "--method awq --symmetric",
    "--method awq",
    "--method awq+gptq --symmetric",
    "--method awq+gptq",
    "--method awq+gptq --desc-act",
    "--scheme int8",
    "--scheme w8a8",
    "--scheme w8a8 --method gptq",
    "--scheme w8a8 --method gptq --activations static",
    "--method smoothquant",
    "--method smoothquant --activations static",
)
COLUMNS = ("perplexity", "kl_mean", "kl_p99", "top1_agreement")


def files(option: str, names: tuple[str, ...]) -> list[str]:
    """The option with each file of the standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return [word for name in names for word in (option, str(library / name))]


def options_of(row: str) -> list[str]:
    """All options of a row for `isobit quantize`."""
    options = row.split()
    if "--scheme w8a8" not in row and "smoothquant" not in row:
        options += ["--group-size", "32"]
    if "--method" in row:
        options += [*files("--text", CALIBRATED_ON), "--samples", "64", "--length", "256"]
    return options


def isobit(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json; ends the program with what it says when it fails."""
    command = [sys.executable, "-m", "isobit.launch.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def measure(row: str, dense: Path, folder: Path) -> dict[str, Any]:
    """Quantize and evaluate by the options of a row."""
    out = folder / "quantized-{}".format(row.replace(" ", ""))
    isobit("quantize", str(dense), str(out), *options_of(row))
    text = [*files("--text", EVALUATED_ON), "--samples", "12"]
    reference = ("--reference", str(dense), "--launcher", "local")
    found = isobit("evaluate", str(out), *reference, *text)
    return {name: found[name] for name in (*COLUMNS, "reference_perplexity")}


def line(row: str, found: dict[str, Any]) -> str:
    return (
        f"| `{row}` | {found['perplexity']:.3f} | {found['kl_mean']:.4f} | "
        f"{found['kl_p99']:.3f} | {found['top1_agreement']:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=["plain", *KINDS], default="outliers")
    parser.add_argument("--only", default="", help="rows that contain this text")
    parser.add_argument("--out", type=Path, help="write the numbers to a JSON file")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, kind = Path(name), arguments.kind
        dense = SOURCE if kind == "plain" else make(kind, folder / kind)
        print(
            "| | perplexity | KL divergence, mean | p99 | same top token |\n|---|---|---|---|---|"
        )
        for row in (each for each in ROWS if arguments.only in each):
            found[row] = measure(row, dense, folder)
            print(line(row, found[row]), flush=True)
    if arguments.out is not None:
        contents = {"kind": arguments.kind, "rows": found}
        arguments.out.write_text(json.dumps(contents, indent=2) + "\n")


if __name__ == "__main__":
    main()
