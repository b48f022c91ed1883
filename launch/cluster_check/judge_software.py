"""Are all hosts able to run isobit, and with the same software?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from .facts import Report, cards, instructions, package, usual
from .finding import HostFinding


def silent(reports: Mapping[str, Report]) -> list[HostFinding]:
    found = []
    for name, report in reports.items():
        if "error" in report:
            version = report.get("isobit")
            has = "isobit is not installed there" if version is None else f"isobit {version} there"
            found.append(
                HostFinding(
                    gravity="fault",
                    what=f"{name} cannot be asked, {has}: {report['error']}",
                    hosts=(name,),
                    way_out=f"install the driver's isobit in the environment of Ray on {name}",
                )
            )
    return found


def versions(reports: Mapping[str, Report], here: str) -> list[HostFinding]:
    """What all ranks must have alike, or the start of an engine refuses them."""
    found = []
    alike: dict[str, Callable[[Report], str | None]] = {
        "isobit": lambda report: package(report, "isobit"),
        "Ray": lambda report: package(report, "ray"),
        "torch": lambda report: package(report, "torch"),
        "Python": lambda report: report.get("facts", {}).get("python"),
        "instruction set": instructions,
    }
    for what, of in alike.items():
        held: dict[str, list[str]] = defaultdict(list)
        for name, report in reports.items():
            if (value := of(report)) is not None:
                held[value].append(name)
        wanted = (
            here if what == "isobit" else usual([v for v, n in held.items() for _ in n] or [""])
        )
        odd = [name for value, them in held.items() if value != wanted for name in them]
        if not odd:
            continue
        every = "; ".join(f"{value} on {', '.join(them)}" for value, them in held.items())
        driver = f"; the driver has {here}" if what == "isobit" else ""
        way_out = f"install {what} {wanted} on {', '.join(odd)}, then start Ray there again"
        if what == "instruction set":
            way_out = (
                "ISOBIT_CPU_ISA, set alike where Ray starts, makes hosts use one that all have"
            )
        found.append(
            HostFinding(
                gravity="fault",
                what=f"{what} differs: {every}{driver}",
                hosts=tuple(odd),
                way_out=way_out,
            )
        )
    return found


def broken(reports: Mapping[str, Report]) -> list[HostFinding]:
    """torch or the kernels cannot be loaded, or torch does not see what the driver sees."""
    found = []
    for name, report in reports.items():
        facts = report.get("facts", {})
        for part, package_name in (("torch", "torch"), ("kernels", "isobit")):
            error = (facts.get(part) or {}).get("error")
            if error is not None:
                found.append(
                    HostFinding(
                        gravity="fault",
                        what=f"{part} cannot be loaded on {name}: {error}",
                        hosts=(name,),
                        way_out=f"there: pip install --force-reinstall --no-deps {package_name}",
                    )
                )
        seen, listed = len(facts.get("torch", {}).get("devices", [])), len(cards(report))
        if listed and "devices" in facts.get("torch", {}) and seen < listed:
            version = facts["torch"]["version"]
            found.append(
                HostFinding(
                    gravity="fault",
                    what=f"torch {version} sees {seen} of {listed} GPUs on {name}",
                    hosts=(name,),
                    way_out="install torch for CUDA there, and see CUDA_VISIBLE_DEVICES",
                )
            )
    return found


def known_trouble(reports: Mapping[str, Report]) -> list[HostFinding]:
    hosts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, report in reports.items():
        for entry in report.get("facts", {}).get("trouble", []):
            hosts[entry["what"], entry["way_out"]].append(name)
    return [
        HostFinding(gravity="warning", what=what, hosts=tuple(them), way_out=way_out)
        for (what, way_out), them in hosts.items()
    ]
