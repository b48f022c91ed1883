"""The shape of the source: small folders, small files, and no circle of imports between files."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from ..support import PRODUCT, ROOT

CODE = (".py", ".pyi", ".h", ".cpp")
MOST_FILES = 25
MOST_LINES = 600


def sources() -> list[Path]:
    """Files of product, tests and measurements, from the root."""
    folders = (ROOT / name for name in (*PRODUCT, "tests", "bench"))
    found = (path for folder in folders for path in folder.rglob("*") if path.suffix in CODE)
    return sorted(path.relative_to(ROOT) for path in found)


def module_of(path: Path) -> str:
    """`runtime/engine/engine.py` is isobit.runtime.engine.engine."""
    parts = path.with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "isobit" else ("isobit", *parts))


def imports(path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports, late imports and those for types alike."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            base = [*parts[: len(parts) - node.level + 1], *(node.module or "").split(".")]
            name = ".".join(part for part in base if part)
            inside = {f"{name}.{alias.name}" for alias in node.names}
            found |= (inside & modules) or {name}
    return (found & modules) - {module}


def test_no_import_circle_between_files() -> None:
    files = [path for path in sources() if path.parts[0] in PRODUCT and path.suffix == ".py"]
    files = [path for path in files if path != Path("isobit/__init__.py")]  # imports when asked
    modules = {module_of(path) for path in files}
    graph = {module_of(path): imports(path, modules) for path in files}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error


def test_folders_hold_few_files() -> None:
    counts = Counter(path.parent for path in sources())
    assert {str(folder): n for folder, n in counts.items() if n > MOST_FILES} == {}


def test_files_are_short() -> None:
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
