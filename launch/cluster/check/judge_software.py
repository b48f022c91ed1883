"""Are all hosts able to run isobit, and with the same software?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from isobit.findings import Finding

from ..ray.versions import differing
from .facts import ALIKE, Report, cards, devices, facts, instructions, usual


def silent(reports: Sequence[Report], driver: Mapping[str, str]) -> list[Finding]:
    """Hosts that said nothing, where another version of isobit is not the reason."""
    found = []
    for report in reports:
        host = report["host"]
        if report["state"] == "dead":
            what = f"{host} has left the cluster"
            remedy = "start Ray there again; /tmp/ray/session_latest/logs there says why it ended"
        elif report["state"] == "silent":
            what = f"{host} takes no connection where its Ray is to listen"
            remedy = "see its power and its cable, then whether a firewall came between"
        elif "error" in report and report.get("versions", driver)["isobit"] == driver["isobit"]:
            what = f"{host} cannot be asked: {report['error']}"
            remedy = "see the logs there, in /tmp/ray/session_latest/logs"
        else:
            continue
        found.append(Finding(severity="error", what=what, hosts=(host,), remedy=remedy))
    return found


def versions(reports: Sequence[Report], driver: Mapping[str, str]) -> list[Finding]:
    """What all ranks must have as the driver has it, or the start of an engine refuses them."""
    held: dict[tuple[str, str], list[str]] = defaultdict(list)
    for report in reports:
        for difference in differing(driver, report.get("versions", driver), "not known"):
            held[difference].append(report["host"])
    found = [
        Finding(
            severity="error",
            what=f"{ALIKE[package]} {has} on {', '.join(hosts)}; the driver has {driver[package]}",
            hosts=tuple(hosts),
            remedy="install there what the driver has, then start Ray there again",
        )
        for (package, has), hosts in held.items()
    ]
    sets = {r["host"]: isa for r in reports if (isa := instructions(r)) is not None}
    if len(set(sets.values())) > 1:
        most = usual(list(sets.values()))
        odd = tuple(host for host, isa in sets.items() if isa != most)
        found.append(
            Finding(
                severity="error",
                what="different instruction sets: "
                + "; ".join(f"{isa} on {host}" for host, isa in sets.items()),
                hosts=odd,
                remedy="set ISOBIT_CPU_ISA to one that all have, where Ray is started",
            )
        )
    return found


def broken(reports: Sequence[Report]) -> list[Finding]:
    """torch or the kernels cannot be loaded, or torch does not see what the driver lists."""
    found = []
    for report in reports:
        host, seen, listed = report["host"], devices(report), len(cards(report))
        for part, package in (("torch", "torch"), ("kernels", "isobit")):
            error = (facts(report).get(part) or {}).get("error")
            if error is not None:
                found.append(
                    Finding(
                        severity="error",
                        what=f"{part} cannot be loaded on {host}: {error}",
                        hosts=(host,),
                        remedy=f"there: pip install --force-reinstall --no-deps {package}",
                    )
                )
        if seen is not None and len(seen) < listed:
            version = facts(report)["torch"]["version"]
            found.append(
                Finding(
                    severity="error",
                    what=f"torch {version} sees {len(seen)} of {listed} GPUs on {host}",
                    hosts=(host,),
                    remedy="install torch for CUDA there; see CUDA_VISIBLE_DEVICES",
                )
            )
    return found


def known_trouble(reports: Sequence[Report]) -> list[Finding]:
    """What has gone wrong elsewhere on such machines."""
    hosts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for report in reports:
        for entry in facts(report).get("trouble", []):
            hosts[entry["what"], entry["remedy"]].append(report["host"])
    return [
        Finding(
            severity="warning", what=f"{', '.join(them)}: {what}", hosts=tuple(them), remedy=remedy
        )
        for (what, remedy), them in hosts.items()
    ]
