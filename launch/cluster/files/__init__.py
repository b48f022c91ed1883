"""Files that bring a cluster up: `ray up` configurations, and a manifest for KubeRay."""

from __future__ import annotations

from pathlib import Path

from isobit.errors import InputError

FOLDER = Path(__file__).parent
MARK = "# EDIT"


def cluster_files() -> dict[str, str]:
    """What each file is for, which its first line says, by name."""
    return {
        file.stem: file.read_text().splitlines()[0].removeprefix("# ")
        for file in sorted(FOLDER.glob("*.yaml"))
    }


def lines_to_edit(name: str) -> list[tuple[int, str]]:
    """The lines of a file that a user has to look at, by number from 1."""
    lines = enumerate((FOLDER / f"{name}.yaml").read_text().splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if MARK in line]


def write_cluster_file(name: str, out: Path) -> None:
    """Write the file `name` to `out`.

    Raises InputError E-CLUSTER-FILE for a name that is not there, or an `out` that is already or
    cannot be written.
    """
    names = cluster_files()
    if name not in names:
        raise InputError("E-CLUSTER-FILE", f"no file {name!r}; there are {', '.join(names)}")
    try:
        with out.open("x") as file:
            file.write((FOLDER / f"{name}.yaml").read_text())
    except FileExistsError as error:
        raise InputError("E-CLUSTER-FILE", f"{out} is there already; it is not touched") from error
    except OSError as error:
        raise InputError("E-CLUSTER-FILE", f"{out} cannot be written: {error.strerror}") from error
