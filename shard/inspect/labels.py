"""What a folder's JSON files say about the model, and where they contradict each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError
from isobit.findings import Finding

from ..captured_warnings import captured_warnings
from ..checkpoint.settings import read_config, read_json
from ..formats.config import QUANTIZE_CONFIG, disagreements
from ..model.spec import ModelSpec, read_spec, spec_from_config
from ..names import listed, plural
from .findings import from_error

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
    merged = {**settings[1], **settings[0]}
    method = merged.get("quant_method") or merged.get("method")
    return Labels(spec=spec, method=str(method) if method else None, findings=findings)


def _spec(folder: Path) -> tuple[ModelSpec | None, list[Finding]]:
    """The model's shape; a broken generation_config.json does not hide it."""
    try:
        return read_spec(folder), []
    except InputError as error:
        findings = [
            _disagreement(error, folder)
            if error.code == "E-QUANT-LABEL"
            else from_error(error, folder, _WAY_OUT.get(error.code, _RESTORE))
        ]
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


def _disagreement(error: InputError, folder: Path) -> Finding:
    """The finding for two files that describe the quantization in two ways."""
    apart = disagreements(read_config(folder), read_json(folder / QUANTIZE_CONFIG))
    return Finding(
        severity="error",
        code=error.code,
        where=f"config.json, {QUANTIZE_CONFIG}",
        what=error.message,
        numbers={
            key: {"config.json": one, QUANTIZE_CONFIG: other} for key, (one, other) in apart.items()
        },
        remedy="correct the file that is wrong",
    )


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
            remedy="nothing to do",
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
                remedy="look up in the tool that wrote them whether they change how weights are "
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
                remedy="nothing to do",
            )
        )
    return findings
