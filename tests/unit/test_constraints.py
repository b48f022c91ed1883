"""Every package that isobit, its tests and its builds take is pinned to the version in use."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ..support import ROOT

EXTRAS = ("test", "check")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    split = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in split}


def needed() -> dict[str, str]:
    """All that is installed for this project, by following requirements, and its versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"]]
    for extra in EXTRAS:
        direct += project["optional-dependencies"][extra]
    found: dict[str, str] = {}
    asked: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in direct]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # only for checks, which this environment may lack
        found[name] = Version(package.version).public
        for each in ("", *sorted(wanted.extras)):
            if (name, each) not in asked:
                asked.add((name, each))
                waiting += [(Requirement(text), each) for text in package.requires or ()]
    return found


def test_what_is_installed_is_what_is_pinned():
    pinned = pins()
    wrong = {n: (v, pinned.get(n)) for n, v in needed().items() if pinned.get(n) != v}
    assert wrong == {}


def test_builds_are_pinned_too():
    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    names = {canonicalize_name(Requirement(text).name) for text in system["requires"]}
    assert names <= set(pins())
