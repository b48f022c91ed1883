"""What a folder's JSON files say about the model, and where they contradict each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...kernels.errors import InputError
from ..captured_warnings import captured_warnings
from ..names import listed, plural
from ..settings import read_config, read_json
from ..spec import ModelSpec, read_spec, spec_from_config
from .findings import Finding, from_error

QUANTIZE_CONFIG = "quantize_config.json"
# Two names of one setting, old and new; only settings that decide how weights are read.
_ALIASES = {
    "checkpoint_format": "format",
    "method": "quant_method",
    "w_bit": "bits",
    "q_group_size": "group_size",
}
_DECISIVE = (
    "quant_method", "format", "bits", "group_size", "sym", "desc_act", "zero_point", "version",
    "lm_head", "dynamic", "modules_to_not_convert", "is_marlin_format",
)  # fmt: skip
MOST_SHOWN = 60
_RESTORE = "restore the file from where the model came from; shapes and codes were not checked"
_WAY_OUT = {"E-MODEL-MISSING": "copy config.json from where the weights came from"}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """`spec` is None where config.json cannot be understood; `method` is what it names then."""

    spec: ModelSpec | None
    method: str | None
    findings: list[Finding]


def read_labels(folder: Path) -> Labels:
    """Read config.json, quantize_config.json and generation_config.json of a folder."""
    with captured_warnings("isobit.shard") as records:
        spec, findings = _spec(folder)
    settings = _quantization_settings(folder)
    findings += _from_warnings(records)
    findings += _disagreements(*settings)
    merged = {**settings[1], **settings[0]}
    method = merged.get("quant_method") or merged.get("method")
    return Labels(spec=spec, method=str(method) if method else None, findings=findings)


def _spec(folder: Path) -> tuple[ModelSpec | None, list[Finding]]:
    """The model's shape; a broken generation_config.json does not hide it."""
    try:
        return read_spec(folder), []
    except InputError as error:
        findings = [from_error(error, folder, _WAY_OUT.get(error.code, _RESTORE))]
    try:
        quantize = folder / QUANTIZE_CONFIG
        other = read_json(quantize) if quantize.is_file() else None
        return spec_from_config(read_config(folder), other), findings
    except InputError:
        return None, findings


def _quantization_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The quantization settings of config.json and of quantize_config.json, {} where absent."""
    found = []
    for name in ("config.json", QUANTIZE_CONFIG):
        try:
            values = read_json(folder / name) if (folder / name).is_file() else {}
        except InputError:
            values = {}
        if name == "config.json":
            values = values.get("quantization_config") or values.get("compression_config") or {}
        found.append(values if isinstance(values, dict) else {})
    return found[0], found[1]


def _disagreements(first: dict[str, Any], second: dict[str, Any]) -> list[Finding]:
    """One finding that names every decisive setting with two values."""
    one, other = _decisive(first), _decisive(second)
    apart = [key for key in _DECISIVE if key in one and key in other and one[key] != other[key]]
    if not apart:
        return []
    both = {key: {"config.json": one[key], QUANTIZE_CONFIG: other[key]} for key in apart}
    return [
        Finding(
            severity="error",
            code="E-QUANT-LABEL",
            where=f"config.json, {QUANTIZE_CONFIG}",
            what="the two files disagree: "
            + "; ".join(
                f"{key} is {one[key]!r} in config.json and {other[key]!r} in {QUANTIZE_CONFIG}"
                for key in apart
            ),
            numbers=both,
            way_out="engines differ in which file they believe (isobit: config.json). Restore both "
            "from where the model came from",
        )
    ]


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under one name each; a value of None or {} says nothing."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if value not in (None, {}, []):
            values[_ALIASES.get(key, key)] = value.lower() if isinstance(value, str) else value
    return values


def _from_warnings(records: list[logging.LogRecord]) -> list[Finding]:
    """Fields of the quantization settings that isobit does not know, and what else was logged.

    An unknown field that says something may change how weights are read, so it is a warning.
    """
    unknown = [record.args for record in records if record.funcName == "warn_unknown"]
    fields = {str(args[1]): args[2] for args in unknown if isinstance(args, tuple)}
    saying = {key: value for key, value in fields.items() if value not in (None, {}, [])}
    silent = [key for key in fields if key not in saying]
    findings = [
        Finding(
            severity="note",
            code="N-CONFIG",
            where="config.json",
            what=record.getMessage(),
            way_out="nothing to do",
        )
        for record in records
        if record.funcName != "warn_unknown"
    ]
    if saying:
        shown = [f"{key} = {str(value)[:MOST_SHOWN]}" for key, value in saying.items()]
        findings.append(
            Finding(
                severity="warning",
                code="W-CONFIG-FIELD",
                where="config.json",
                what=f"not known and not used: {plural(len(saying), 'field')} of the quantization "
                f"settings{listed(shown)}",
                numbers={"fields": saying},
                way_out="look up in the tool that wrote them whether they change how weights are "
                "stored",
            )
        )
    if silent:
        findings.append(
            Finding(
                severity="note",
                code="N-CONFIG-FIELD",
                where="config.json",
                what=f"fields that are not known, and empty: {', '.join(silent)}",
                way_out="nothing to do",
            )
        )
    return findings
