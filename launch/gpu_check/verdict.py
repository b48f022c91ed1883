"""What follows from the results: which way to add up, what to switch off, each with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .runner import FAILED, NOT_RUN, PASSED

WAYS = {
    "peer-memory": ("peer memory", "NCCL_P2P_DISABLE=1"),
    "host-memory": ("host memory", "--disable-custom-all-reduce"),
    "nccl": ("gather", "--all-reduce custom"),
}
"""Steps of sums in the order in which `--all-reduce auto` tries them: as in rows, and what leaves
each of them out."""
KERNELS = ("build", "product", "row-bits", "tp-bits", "attention", "other-ops", "all-weights")
Results = Sequence[Mapping[str, Any]]


def verdict(results: Results) -> dict[str, Any]:
    """`passed` where no step failed, `advice` for each GPU and each pair, `sums`: all times."""
    failed = [result for result in results if result["status"] == FAILED]
    return {
        "passed": bool(results) and not failed,
        "counts": {
            status: sum(result["status"] == status for result in results)
            for status in (PASSED, FAILED, NOT_RUN)
        },
        "failed": [f"{result['step']} on {result['place']}: {result['what']}" for result in failed],
        "advice": _of_gpus(results) + _of_pairs(results),
        "sums": _sums(results),
    }


def _of_gpus(results: Results) -> list[dict[str, str]]:
    """For each GPU alone: the graphs, the kernels."""
    advice = []
    for place in dict.fromkeys(r["place"] for r in results if len(r["gpus"]) == 1):
        here = {r["step"]: r for r in results if r["place"] == place}
        broken = [name for name in (*KERNELS, "model") if _is(here, name, FAILED)]
        if broken:
            use, why = "--device cpu", f"failed: {', '.join(broken)}"
        elif _is(here, "graph", FAILED):
            use, why = "--enforce-eager", f"graphs: {here['graph']['what']}"
        elif failed := [name for name, r in here.items() if r["status"] == FAILED]:
            use, why = "--device cuda", f"results are right; not measured: {', '.join(failed)}"
        else:
            use, why = "--device cuda", "every step that ran has passed"
        advice.append({"place": place, "use": use, "why": why})
    return advice


def _of_pairs(results: Results) -> list[dict[str, str]]:
    """For each pair: the first way of adding up that works, and what to leave out before it."""
    advice = []
    for place in dict.fromkeys(r["place"] for r in results if len(r["gpus"]) == 2):
        here = {r["step"]: r for r in results if r["place"] == place}
        ways = {step: here[step] for step in WAYS if step in here}
        if not ways or all(r["status"] == NOT_RUN for r in ways.values()):
            why = next((r["what"] for r in here.values() if r["status"] == NOT_RUN), "no sums ran")
            if not any(r["status"] == FAILED for r in here.values()):
                advice.append({"place": place, "use": "nothing to say", "why": why})
                continue
        advice.append(_of_pair(place, here, ways))
    return advice


def _of_pair(
    place: str, here: Mapping[str, Mapping[str, Any]], ways: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    works = next((step for step, r in ways.items() if r["status"] == PASSED), None)
    if works is None:
        why = [f"{WAYS[step][0]}: {result['what']}" for step, result in ways.items()]
        return {
            "place": place,
            "use": "-tp 1: these GPUs do not add up together",
            "why": "; ".join(why),
        }
    off, why = [], []
    for step, result in ways.items():
        if step == works:
            break
        why.append(f"{WAYS[step][0]} {result['status']}: {result['what']}")
        if result["status"] == FAILED:
            off.append(WAYS[step][1])
    name = WAYS[works][0]
    use = f"--all-reduce {'gather' if works == 'nccl' else 'custom'}, over {name}"
    if _is(here, "sum-graph", FAILED):
        off.append("--enforce-eager")
        why.append(f"sums in a graph: {here['sum-graph']['what']}")
    if _is(here, "verify", FAILED):
        why.append(f"verify: {here['verify']['what']}")
    times = _times(ways[works])
    why.append(f"{name} has the bits of the tree ({times})" if times else f"{name} has passed")
    return {"place": place, "use": " ".join([use, *(["with", *off] if off else [])]),
            "why": "; ".join(why)}  # fmt: skip


def _times(result: Mapping[str, Any]) -> str:
    rows = [row for row in result["rows"] if "us" in row and row.get("over") != "library"]
    return ", ".join(f"{row['rows']} rows {row['us']:.0f} us" for row in rows)


def _sums(results: Results) -> list[dict[str, Any]]:
    """Times of every way on every pair, one row each."""
    return [
        {"place": result["place"], **row}
        for result in results
        if result["step"] in WAYS
        for row in result["rows"]
        if "us" in row
    ]


def _is(here: Mapping[str, Mapping[str, Any]], step: str, status: str) -> bool:
    return step in here and here[step]["status"] == status
