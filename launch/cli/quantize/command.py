"""`isobit quantize`: a dense model folder in, a quantized folder out."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from isobit.errors import InputError

from ....runtime.calibration.calibrate import Progress, check_calibration, quantize_calibrated
from ....runtime.calibration.mixed_precision import with_budget
from ....runtime.devices import refuse_cuda
from ....shard.quantize.folder import check_request, quantize_folder
from ....shard.quantize.mixed import MixedWidths
from ....shard.quantize.report import QuantizeReport
from ....shard.quantize.scheme import QuantizeSettings
from ...evaluation.quantize_evaluation import plan_evaluation
from ...models import model_folder
from ...placing import LauncherName
from ...printable import human_bytes
from ...text.calibration_text import DEFAULT_LENGTH, DEFAULT_SAMPLES, calibration_text
from ...text.hub_dataset import parse_dataset
from ..again import command_again
from ..options.common import CpuDevice, Degree, Json, Model
from ..options.engine import RayAddress
from ..options.panels import CALIBRATION, EVALUATION, RANKS
from ..output import console, errors, print_json, progress_bar
from .evaluation import Source, evaluate_output, show_evaluation
from .options import (
    DEFAULT_DAMPING,
    DEFAULT_GROUP,
    Activations,
    CalibrationRun,
    Format,
    Method,
    QuantizeOptions,
    Scheme,
)


def quantize(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    method: Annotated[
        Method,
        typer.Option(
            metavar="METHOD",
            help="How codes are chosen: absmax, or with a text gptq, awq, awq+gptq, smoothquant.",
        ),
    ] = Method.ABSMAX,
    scheme: Annotated[
        Scheme | None,
        typer.Option(
            help="Weights of 4 or 8 bits, or both weights and activations of 8 (default: int4, "
            "with smoothquant w8a8)."
        ),
    ] = None,
    out_format: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="What other engines read OUT as: compressed-tensors (default), gptq, gptq_v2, "
            "awq.",
            show_default=False,
        ),
    ] = Format.COMPRESSED_TENSORS,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Input features that share a scale; -1: one scale per output (default: "
            f"{DEFAULT_GROUP})."
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Without zero points or with them, which is usual with awq.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Other widths for some modules, as in 'layers.0.*=8'; 16 stays dense."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Mixed precision: the best of 4, 8 and 16 bits for each linear layer within so "
            "many bits per weight, scales included; --keep comes first. Needs --text or --dataset."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            rich_help_panel=CALIBRATION, help="A file of calibration text. Repeat it for more."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            rich_help_panel=CALIBRATION,
            help="A Hugging Face dataset in place of --text, as "
            r"ID\[@CONFIG]\[:SPLIT\[:COLUMN]] "
            "(default: split train, column text).",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=CALIBRATION,
            help=f"Samples of the text (default: as many as there are up to {DEFAULT_SAMPLES}).",
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=CALIBRATION, help=f"Tokens of a sample (default: {DEFAULT_LENGTH})."
        ),
    ] = None,
    desc_act: Annotated[
        bool,
        typer.Option("--desc-act", help="gptq, awq+gptq: features that matter most come first."),
    ] = False,
    damp_percent: Annotated[
        float | None,
        typer.Option(
            help="gptq, awq+gptq: what is added to the Hessian's diagonal, as a share of its mean "
            f"(default: {DEFAULT_DAMPING})."
        ),
    ] = None,
    mse: Annotated[
        bool,
        typer.Option("--mse", help="absmax, gptq, awq+gptq: a smaller range where that errs less."),
    ] = False,
    activations: Annotated[
        Activations | None,
        typer.Option(
            help="w8a8: a scale for each token, found as it comes (dynamic, the default), or one "
            "for all, from calibration."
        ),
    ] = None,
    degree: Degree = 1,
    device: CpuDevice = "auto",
    launcher: Annotated[
        LauncherName | None,
        typer.Option(
            rich_help_panel=RANKS, help="Who places several ranks: local, ray or auto (default)."
        ),
    ] = None,
    ray_address: RayAddress = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            rich_help_panel=CALIBRATION,
            help="Begin anew where an earlier run was stopped.",
        ),
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate/--no-evaluate",
            rich_help_panel=EVALUATION,
            help="Compare OUT with MODEL at the end: what was lost?",
        ),
    ] = True,
    evaluate_text: Annotated[
        list[Path] | None,
        typer.Option(
            rich_help_panel=EVALUATION,
            help="Text to compare on, instead of what calibration left over.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Quantize the weights of a model, to nearest or by how they act on a text; say what is lost.

    Exit status 1 when the result gives NaN or infinity.
    """
    refuse_cuda(device, "isobit quantize")
    if evaluate_text and not evaluate:
        raise InputError("E-USAGE", "--evaluate-text has no meaning with --no-evaluate")
    options = QuantizeOptions(
        method=method,
        scheme=scheme,
        format=out_format,
        group_size=group_size,
        symmetric=symmetric,
        keep=tuple(keep or ()),
        budget=budget,
        text=tuple(text or ()),
        dataset=dataset,
        samples=samples,
        length=length,
        desc_act=desc_act,
        damp_percent=damp_percent,
        mse=mse,
        activations=activations,
        run=CalibrationRun(
            degree=degree, launcher=launcher, ray_address=ray_address, restart=restart
        ),
    )
    stored, calibrated = options.stored(), options.calibrated()
    folder, used, ids, held_out = model_folder(model), {}, None, None
    tokens = DEFAULT_LENGTH if length is None else length
    if calibrated is None:
        check_request(folder, out, stored)
    else:
        check_calibration(folder, out, calibrated, degree)
    if calibrated is not None or budget is not None:
        chosen = None if dataset is None else parse_dataset(dataset)
        cut = calibration_text(folder, options.text, samples, tokens, chosen)
        ids, held_out = cut.samples, cut.held_out
        used = {"samples": ids.shape[0], "length": ids.shape[1]}
    plan = plan_evaluation(folder, evaluate_text or (), held_out, tokens) if evaluate else None
    if budget is not None:
        assert ids is not None
        by = None if calibrated is None else calibrated.method
        with _progress("measuring sensitivity") as progress:
            exponent = options.exponent
            stored = with_budget(folder, out, ids, stored, by, budget, progress, mse=exponent)
    with _progress("quantizing") as progress:
        if calibrated is None:
            report = quantize_folder(folder, out, stored, progress, mse=options.exponent)
        else:
            assert ids is not None
            with options.run.ranks() as ranks:
                report = quantize_calibrated(
                    folder,
                    out,
                    ids,
                    dataclasses.replace(calibrated, stored=stored),
                    progress,
                    degree=degree,
                    launcher=ranks,
                    restart=restart,
                    note=lambda line: errors.print(line, markup=False, soft_wrap=True),
                )
    named = {"out": str(out), "method": method.value, "scheme": options.named_scheme}
    named["format"] = out_format.value
    summary = {**named, "group_size": stored.group_size, **used, **_summary(report)}
    if stored.mixed is not None:
        summary["mixed"] = _mixed(stored.mixed)
    if not as_json:
        _show(summary, stored)
    source = Source(name=model, folder=folder, options=options, stored=stored)
    summary["evaluation"] = evaluate_output(
        out, source, report, plan, lambda changes: command_again(context, **changes)
    )
    if as_json:
        print_json(summary)
    else:
        show_evaluation(out, summary["evaluation"], plan)
    if (summary["evaluation"] or {}).get("not_finite", {}).get("positions"):
        raise typer.Exit(1)


@contextmanager
def _progress(description: str) -> Iterator[Progress]:
    with progress_bar(description) as bar:
        yield lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total)


def _mixed(mixed: MixedWidths) -> dict[str, Any]:
    counts = Counter(each.bits for each in mixed.products.values())
    return {
        "budget": mixed.budget,
        "average": float(f"{mixed.average:.6g}"),
        "predicted_kl": float(f"{mixed.kl:.4g}"),
        "products": {str(bits): counts[bits] for bits in sorted(counts)},
    }


def _summary(report: QuantizeReport) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "quantized": len(report.modules),
        "source_bytes": report.source_bytes,
        "written_bytes": report.written_bytes,
        "sqnr_db": _spread(report.sqnr_db, min),
    }
    errors = {
        name: m.layer_error for name, m in report.modules.items() if m.layer_error is not None
    }
    if errors:
        nearest = [m.nearest_error for m in report.modules.values() if m.nearest_error is not None]
        summary["layer_error"] = _spread(errors, max)
        summary["nearest_error"] = {"median": statistics.median(nearest)}
    return summary


def _spread(values: dict[str, float], worst_of: Any) -> dict[str, Any]:
    worst = worst_of(values, key=lambda name: values[name])
    median = statistics.median(values.values())
    return {
        "median": float(f"{median:.4g}"),
        "worst": float(f"{values[worst]:.4g}"),
        "worst_module": worst,
    }


def _show(summary: dict[str, Any], stored: QuantizeSettings) -> None:
    size = stored.group_size
    made = summary["scheme"] if stored.mixed is None else "mixed widths"
    console.print(
        f"{summary['out']}: {summary['quantized']} weights to {made} by "
        f"{summary['method']}, "
        + (f"group size {size}" if size > 0 else "one scale per output")
        + f"; {human_bytes(summary['source_bytes'])} -> {human_bytes(summary['written_bytes'])}"
    )
    if (mixed := summary.get("mixed")) is not None:
        console.print(
            f"{mixed['average']:.4g} bits per weight of a budget of {mixed['budget']:g}: "
            + ", ".join(f"{n} weights at {bits}" for bits, n in mixed["products"].items())
            + f"; divergence from the dense model, predicted: {mixed['predicted_kl']:.3g} nats"
        )
    noise = summary["sqnr_db"]
    console.print(
        f"signal to quantization noise: median {noise['median']} dB, "
        f"worst {noise['worst']} dB ({noise['worst_module']})"
    )
    if (error := summary.get("layer_error")) is not None:
        console.print(
            f"share of error in outputs, {summary['samples']} samples of {summary['length']} "
            f"tokens: median {error['median']:.3g} ({summary['nearest_error']['median']:.3g} to "
            f"nearest), worst {error['worst']:.3g} ({error['worst_module']})"
        )
