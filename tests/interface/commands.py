"""What programs and scripts rely on: flags, error codes, exit statuses and keys of --json.

    python -m tests.interface.commands --write

writes the record again. A change that is meant belongs into docs/interface-changes.md with its
reason, in the same commit.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from isobit.launch.cli.app import make_app

from ..support import PRODUCT, ROOT

RECORD = Path(__file__).with_name("commands.json")


def flags() -> dict[str, dict[str, Any]]:
    """By command, as "bench kernels": every parameter with its spellings and its default."""
    found: dict[str, dict[str, Any]] = {}

    def walk(command: Any, name: str) -> None:
        found[name or "isobit"] = {
            parameter.name: {
                "flags": sorted([*parameter.opts, *parameter.secondary_opts]),
                "default": str(parameter.default),
                "many": parameter.multiple or parameter.nargs != 1,
            }
            for parameter in command.params
            if parameter.name != "help"
        }
        for child, sub in getattr(command, "commands", {}).items():
            walk(sub, f"{name} {child}".strip())

    walk(typer.main.get_command(make_app()), "")
    return found


def codes() -> list[str]:
    """Every stable code of the product's source."""
    found = set()
    for room in PRODUCT:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    head = node.value.partition(" ")[0].rstrip(":")
                    if head[:2] in ("E-", "W-", "N-") and head[2:].replace("-", "").isupper():
                        found.add(head)
    return sorted(found)


def keys(value: Any, prefix: str = "") -> set[str]:
    """Paths of keys in a JSON value; `[]` stands for every element, `*` for names that vary."""
    if isinstance(value, dict):
        varying = value and all(key.isdecimal() for key in value)
        parts = [
            keys(v, f"{prefix}.{'*' if varying else k}" if prefix else k) for k, v in value.items()
        ]
        return set().union(*parts) if parts else {prefix}
    if isinstance(value, list):
        return set().union(*(keys(v, f"{prefix}[]") for v in value)) if value else {f"{prefix}[]"}
    return {prefix}


MODEL = "tests/golden/gptq-v1"
QUICK = ("--prompt-ids", "5,6,7", "--max-tokens", "2", "--launcher", "local")
RUNS: dict[str, tuple[str, ...]] = {
    "plan": ("plan", MODEL, "-tp", "2", "--json"),
    "plan, of a size that cannot be": ("plan", MODEL, "-tp", "1000", "--json"),
    "inspect": ("inspect", MODEL, "--json"),
    "inspect, of no folder": ("inspect", "/nonexistent", "--json"),
    "generate": ("generate", MODEL, "-tp", "2", *QUICK, "--json"),
    "generate, with a fault": ("generate", MODEL, "-tp", "2", *QUICK, "--json"),
    "generate, of an unknown option": ("generate", MODEL, "--colour"),
    "verify": ("verify", MODEL, "--degrees", "1,2", *QUICK, "--json"),
    "doctor": ("doctor", MODEL, "-tp", "2", "--quick", "--launcher", "local", "--json"),
    "bench kernels, of a shape that cannot be": ("bench", "kernels", "--shapes", "64x64", "--json"),
    "bench throughput": (
        *("bench", "throughput", MODEL, "--prompt-tokens", "8", "--new-tokens", "4"),
        *("--rounds", "1", "--launcher", "local", "--json"),
    ),
    "bench collectives": ("bench", "collectives", "-tp", "2", "--bytes", "64", "--json"),
    "version": ("--version",),
}
FAULTS = {"generate, with a fault": "tests.faults.seeded:flip_a_weight_bit"}


def outputs() -> dict[str, dict[str, Any]]:
    """By run: exit status and paths of keys of the JSON object that it prints."""
    found = {}
    for name, arguments in RUNS.items():
        fault = {"ISOBIT_FAULT": FAULTS[name]} if name in FAULTS else {}
        done = subprocess.run(
            [sys.executable, "-m", "isobit.launch.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ | fault,
            cwd=ROOT,
        )
        told = json.loads(done.stdout) if done.stdout.startswith("{") else None
        found[name] = {"status": done.returncode, "keys": sorted(keys(told)) if told else []}
    return found


def main() -> None:
    """Write the record, or say what differs from it."""
    found = {"flags": flags(), "codes": codes(), "runs": outputs()}
    if "--write" in sys.argv[1:]:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")
        return
    recorded = json.loads(RECORD.read_text())
    differing = [
        f"{kind}: {each}" for kind in found for each in differences(recorded[kind], found[kind])
    ]
    sys.stdout.write("".join(f"{line}\n" for line in differing) or "as recorded\n")
    sys.exit(bool(differing))


def differences(recorded: Any, found: Any) -> list[str]:
    """What was recorded and is not there any more, what is new, and what is other than it was."""
    if isinstance(recorded, list) and isinstance(found, list):
        gone, new = set(recorded) - set(found), set(found) - set(recorded)
        return [
            *(f"{each} is gone" for each in sorted(gone)),
            *(f"{each} is new" for each in sorted(new)),
        ]
    if isinstance(recorded, dict) and isinstance(found, dict):
        told = []
        for key in sorted(recorded | found):
            if key not in found or key not in recorded:
                told.append(f"{key} is {'new' if key in found else 'gone'}")
            else:
                told += [f"{key}: {each}" for each in differences(recorded[key], found[key])]
        return told
    return [] if recorded == found else [f"{recorded!r} became {found!r}"]


if __name__ == "__main__":
    main()
