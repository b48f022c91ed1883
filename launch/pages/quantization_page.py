"""quantization_report.html: what quantizing did and what it cost, for people."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...shard.checkpoint.write_file import write_beside
from ...shard.quantize.report import REPORT
from ..evaluation.quantize_evaluation import ROUGH, loss
from ..printable import human_bytes, printable
from .module_map import module_maps
from .render import render

PAGE = "quantization_report.html"


def write_page(out: Path, report: Mapping[str, Any]) -> Path:
    """Write the page of a report beside it; raises InputError E-OUT-WRITE."""
    path = out / PAGE
    write_beside(path, printable(quantization_page(report)))
    return path


def quantization_page(report: Mapping[str, Any]) -> str:
    """The page of what quantization_report.json holds."""
    made, modules, evaluation = report["made"], report["modules"], report["evaluation"]
    page = {
        "title": f"{made['model']}, {made['scheme']} by {made['method']}",
        "verdict": _verdict(evaluation),
        "tiles": [*_tiles(evaluation), _size(made)],
        "advice": (evaluation or {}).get("advice", []),
        "maps": module_maps(modules),
        "facts": [(name.replace("_", " "), _fact(v)) for name, v in report["settings"].items()],
        "version": version("isobit"),
        "data": REPORT,
    }
    return render("quantization.html.j2", page=page)


def _fact(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        plain = {k: v for k, v in value.items() if not isinstance(v, Mapping)}
        return ", ".join(f"{k} {v:.4g}" for k, v in plain.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _verdict(evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    if evaluation is None:
        return _said("warn", "Not evaluated.", "How much was lost is not known.")
    if "skipped" in evaluation:
        return _said("warn", "Not evaluated.", evaluation["skipped"])
    text = (
        f"{evaluation['samples']} samples of {evaluation['length']} tokens, {evaluation['text']}."
    )
    if evaluation["rough"]:
        text += f" {ROUGH}."
    if evaluation["not_finite"]["positions"]:
        return _said("bad", "Broken.", f"{'; '.join(evaluation['failures'])}. {text}")
    if evaluation["passed"]:
        return _said("good", "Close to the source.", f"Measured on {text}")
    return _said("warn", "Much was lost:", f"{loss(evaluation)}. Measured on {text}")


def _said(tone: str, headline: str, text: str) -> dict[str, str]:
    return {"tone": tone, "headline": headline, "text": text}


def _size(made: Mapping[str, Any]) -> dict[str, str]:
    before, after = made["source_bytes"], made["written_bytes"]
    return _tile("size", human_bytes(after), f"from {human_bytes(before)}, {after / before:.0%}")


def _tiles(evaluation: Mapping[str, Any] | None) -> list[dict[str, str]]:
    if evaluation is None or "skipped" in evaluation:
        return []

    def shown(key: str, form: str) -> str:
        value = evaluation[key]
        return "not finite" if value is None else format(value, form)

    change = shown("perplexity_increase", "+.2%")
    before = f"from {shown('reference_perplexity', '.4g')}, {change}"
    return [
        _tile("perplexity", shown("perplexity", ".4g"), before),
        _tile(
            "KL divergence", shown("kl_mean", ".3g"), f"nats, mean; 99 % < {shown('kl_p99', '.3g')}"
        ),
        _tile("top-1 agreement", shown("top1_agreement", ".1%"), "as the source"),
    ]


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}
