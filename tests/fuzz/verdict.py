"""Whether what the commands of a case said is right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .bounds import Ended

CODE = re.compile(r"E-[A-Z0-9]+(-[A-Z0-9]+)*")
SPOKEN = re.compile(r"^E-[A-Z0-9-]+ ", re.MULTILINE)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
BY_NUMBERS = ("E-CODES-", "E-SCALE-")
"""What inspect alone knows: it looks at all codes, and a loader does not."""
BY_COMMAND = ("E-PROMPT", "E-SAMPLING")
"""What lies in the command: a model may be too short for it."""


def faults_of(ended: Mapping[str, Ended]) -> list[str]:
    """What is wrong, in a line each that begins with its kind."""
    found = []
    for name, each in ended.items():
        found += [f"{fault}: {name}: {_tail(each)}" for fault in _alone(name, each)]
    if not found and {"inspect", "generate"} <= ended.keys():
        found += _together(ended["inspect"], ended["generate"])
    return found


def _alone(name: str, each: Ended) -> list[str]:
    if each.bound:
        return [each.bound.partition(":")[0]]
    if "Traceback" in each.stderr or "Traceback" in each.stdout:
        return ["traceback"]
    if each.status not in (0, 1, 2):
        return [f"status {each.status}"]
    if CONTROL.search(each.stdout + each.stderr):
        return ["control character"]
    if "text" in name and "generate" not in name:
        spoken = each.status == 0 or each.stdout or SPOKEN.search(each.stderr)
        return [] if spoken else ["no code"]
    try:
        value = json.loads(each.stdout)
    except ValueError:
        return ["no JSON"]
    if each.status == 2 and not CODE.fullmatch(str(_error(value).get("code"))):
        return ["no code"]
    return []


def _together(inspected: Ended, generated: Ended) -> list[str]:
    """Both refuse or both accept."""
    report, said = json.loads(inspected.stdout), _error(json.loads(generated.stdout))
    codes = [f["code"] for f in report.get("findings", ()) if f["severity"] == "error"]
    codes += [_error(report)["code"]] if _error(report) else []
    if generated.status == 0 and inspected.status:
        if all(code.startswith(BY_NUMBERS) for code in codes):
            return []
        return [f"inspect alone refuses: {', '.join(codes)}"]
    if generated.status == 1 and not said.get("code", "").startswith("E-NUM-"):
        return [f"a rank fails: {said}"]
    if generated.status == 2 and not inspected.status and said["code"] not in BY_COMMAND:
        return [f"generate alone refuses: {said}"]
    if generated.status == 2 and inspected.status == 1 and not report.get("error"):
        kinds = {f["kind"] for f in report["findings"] if f["severity"] == "error"}
        if kinds == {"damaged"} and said["kind"] == "not-supported":
            return [f"one says damaged, one not supported: {', '.join(codes)}; {said}"]
    return []


def _error(value: Any) -> dict[str, Any]:
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _tail(each: Ended) -> str:
    text = (each.stderr or each.stdout).strip()[-700:]
    return f"status {each.status}, {each.seconds:.1f} s, {each.peak_bytes >> 20} MiB: {text!r}"
