"""A folder for a machine with GPUs and no network: source, the wheels it lacks, one script.

    python -m bench.gpu_bundle OUT

For Python 3.12 on x86-64 Linux with torch, triton, transformers and a C++17 compiler; what else
isobit needs is fetched as wheels here, at the versions of constraints.txt where it names them. Ray
is left out: `isobit gpu check` and `isobit generate --launcher local` do not import it. On the
machine `bash OUT/run.sh` installs what is missing, builds isobit and runs `isobit gpu check`, which
leaves gpu.json, gpu.jsonl and gpu.html beside it. No kernel is compiled ahead: the keys of Triton's
cache hold a hash of its own library there, so compiling is in the minutes of the check.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
WHEELS = {
    "build": ("scikit-build-core", "pathspec", "packaging", "nanobind", "ninja"),
    "isobit": ("google-re2", "setproctitle", "msgpack", "pyzmq", "typer", "click", "shellingham",
               "rich", "markdown-it-py", "mdurl", "pygments", "jinja2", "markupsafe"),
    "oracle of the int4 model": ("compressed-tensors", "pydantic", "pydantic-core", "loguru",
                                 "annotated-types", "typing-inspection", "psutil"),
}  # fmt: skip
SMALL_CMAKE = "cmake==3.27.9"
"""Newer ones build isobit as well, and are 4 MB larger."""
SOURCE = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "isobit", "kernels", "shard",
          "runtime", "launch", "bench")  # fmt: skip
MOST_BYTES = 40_000_000
RUN = """#!/usr/bin/env bash
# Builds isobit and checks the GPUs of this machine; nothing is fetched.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
export PIP_NO_INDEX=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" - <<'PYTHON' > missing.txt
import importlib.metadata, pathlib
for wheel in sorted(pathlib.Path("wheels").glob("*.whl")):
    try:
        importlib.metadata.version(wheel.name.split("-")[0])
    except importlib.metadata.PackageNotFoundError:
        print(wheel)
PYTHON
if [ -s missing.txt ]; then
  "$python" -m pip install --quiet --no-deps --requirement missing.txt
fi
"$python" -m pip install --quiet --no-build-isolation --no-deps ./source
here=$PWD
cd /
status=0
"$python" -m isobit.launch.cli gpu check "$@" \\
  --out "$here/gpu.jsonl" --html "$here/gpu.html" --json > "$here/gpu.json" || status=$?
echo "status $status: send in $here/gpu.json, read $here/gpu.html"
exit $status
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a folder for a machine with GPUs.")
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    out = parser.parse_args().out
    if out.exists():
        sys.exit(f"{out}: already exists")
    (out / "wheels").mkdir(parents=True)
    fetch_wheels(out / "wheels")
    copy_source(out / "source")
    script = out / "run.sh"
    script.write_text(RUN)
    script.chmod(0o755)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, {len(list((out / 'wheels').iterdir()))} wheels")
    if size > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES / 1e6:.0f} MB")


def fetch_wheels(folder: Path) -> None:
    """Download the wheels for PYTHON, whatever Python runs this."""
    names = [name for group in WHEELS.values() for name in group]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    command += ["--dest", str(folder)]
    pinned = ["--constraint", str(ROOT / "constraints.txt"), *names]
    for asked in (pinned, [SMALL_CMAKE]):
        subprocess.run([*command, *asked], check=True)


def copy_source(folder: Path) -> None:
    """What git has of the source, as committed."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "HEAD", *SOURCE], check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


if __name__ == "__main__":
    main()
