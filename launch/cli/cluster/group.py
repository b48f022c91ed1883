"""`isobit cluster`: look at every host before a launch, and the files that bring a cluster up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from isobit.errors import InputError
from isobit.findings import Finding, status

from ....runtime.model_files.manifest import read_manifest
from ...cluster.check.judge import judge
from ...cluster.check.visit import visit
from ...cluster.files import cluster_files, lines_to_edit, write_cluster_file
from ...cluster.ray.session import ray_session
from ...cluster.ray.versions import driver_report
from ..options.common import Json
from ..output import console, print_json, progress_bar
from .table import print_findings, print_table

cluster = typer.Typer(
    name="cluster", help="Several hosts: check them, and bring them up.", no_args_is_help=True
)


@cluster.command()
def check(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model folder, as each host has it.")
    ] = None,
    ray_address: Annotated[
        str, typer.Option(help="HOST:PORT of the head; auto: the cluster of this host.")
    ] = "auto",
    hosts: Annotated[
        int | None, typer.Option(help="How many hosts there should be; fewer are a fault.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at every host of a Ray cluster before anything is launched. Exit status 1 for a fault.

    Versions, GPUs, the ways between hosts, clocks, memory, disks, and what lies at MODEL.
    """
    if hosts is not None and hosts < 1:
        raise InputError("E-USAGE", f"--hosts {hosts}: a cluster has at least one")
    folder = None if model is None else _folder(model)
    wanted = None if folder is None else read_manifest(folder)
    with progress_bar("connecting") as bar, ray_session(ray_address, most_ranks=1):
        task = bar.task_ids[0]
        bar.update(task, description="asking hosts")
        reports = visit(
            None if folder is None else str(folder),
            lambda total: bar.update(task, total=total, advance=1),
        )
    found = judge(reports, driver_report().versions, wanted, hosts)
    faults = sum(finding.severity == "error" for finding in found)
    if as_json:
        print_json(
            {
                "verdict": "faults" if faults else "ready",
                "hosts": reports,
                "findings": [_report(finding) for finding in found],
            }
        )
    else:
        print_table(reports)
        print_findings(found)
        if not faults:
            count = len(reports)
            console.print(f"[bold green]ready[/]  {count} host{'s' if count > 1 else ''}")
    raise typer.Exit(1 if faults else 0)


def _folder(name: str) -> Path:
    """Raises InputError E-MODEL-MISSING for what is no folder of this host."""
    path = Path(name).expanduser().absolute()
    if not path.is_dir():
        raise InputError(
            "E-MODEL-MISSING",
            f"{path}: no such folder on this host. A model of the Hugging Face hub is not looked "
            "for: each host downloads it at the start",
        )
    return path


def _report(finding: Finding) -> dict[str, Any]:
    """A finding as `--json` prints it, with the old names of severity and remedy."""
    return {
        "gravity": status(finding.severity),
        "severity": finding.severity,
        "what": finding.what,
        "way_out": finding.remedy,
        "remedy": finding.remedy,
        "hosts": list(finding.hosts),
    }


@cluster.command()
def files(as_json: Json = False) -> None:
    """List the files that bring a cluster up."""
    named = cluster_files()
    if as_json:
        print_json({"files": named})
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, purpose in named.items():
        table.add_row(Text(name, style="bold"), Text(purpose))
    console.print(table)
    console.print("write one out: isobit cluster new NAME OUT", style="dim")


@cluster.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from isobit cluster files.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write it: cluster.yaml.")],
    as_json: Json = False,
) -> None:
    """Write one of the files out, and say which lines are yours to change."""
    write_cluster_file(name, out)
    lines = lines_to_edit(name)
    if as_json:
        print_json({"file": str(out), "edit": [number for number, _ in lines]})
        return
    console.print(f"{out}: look at these lines, then follow its head", markup=False)
    for number, line in lines:
        console.print(f"{number:4}  {line}", markup=False, soft_wrap=True)
