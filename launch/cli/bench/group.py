"""`isobit bench`: how fast a model runs on this machine."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from ....runtime.engine.engine import Engine
from ....runtime.engine.preflight import prepare
from ....runtime.scheduler.batch import check_requests, pages_for
from ....runtime.settings.engine import EngineSettings, SamplingSettings
from ....runtime.tasks.throughput import Throughput, Workload, measure
from ....shard.plan.plan import PlanSettings
from ...models import model_folder
from ...placing import chosen_device
from ...printable import human_bytes
from ..options import (
    AllReduce,
    Atoms,
    CardShare,
    Check,
    Degree,
    DeviceOption,
    DisableCustomAllReduce,
    Dtype,
    EnforceEager,
    GroupSize,
    Json,
    LauncherName,
    LauncherOption,
    Layout,
    LayoutName,
    LoadFormat,
    LoadFormatOption,
    MaxModelLen,
    Model,
    ModelFilesName,
    ModelFilesOption,
    Quantization,
    RayAddress,
    Threads,
    all_reduce_mode,
    launchers,
    load_settings,
)
from ..output import console, print_json, spinner
from .collectives import collectives
from .kernels import kernels

bench = typer.Typer(
    name="bench", help="Measure how fast kernels and models run here.", no_args_is_help=True
)


@bench.callback()
def group() -> None:
    """Measure how fast kernels and models run here."""


bench.command()(kernels)
bench.command()(collectives)


@bench.command()
def throughput(
    model: Model,
    degree: Degree = 1,
    batch_size: Annotated[int, typer.Option(help="Prompts that run together.", min=1)] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Length of each prompt.", min=1)] = 512,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate per prompt.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="How often all of it is run.", min=1)] = 3,
    load_format: LoadFormatOption = LoadFormat.AUTO,
    quantization: Quantization = None,
    group_size: GroupSize = None,
    layout: Layout = LayoutName.PAD,
    atoms: Atoms = 8,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    device: DeviceOption = "auto",
    enforce_eager: EnforceEager = False,
    gpu_memory_utilization: CardShare = None,
    threads: Threads = 0,
    check: Check = "step",
    all_reduce: AllReduce = "auto",
    disable_custom_all_reduce: DisableCustomAllReduce = False,
    launcher: LauncherOption = LauncherName.AUTO,
    ray_address: RayAddress = None,
    model_files: ModelFilesOption = ModelFilesName.AUTO,
    as_json: Json = False,
) -> None:
    """Time prefill and decode of one batch of random prompts; no tokenizer is needed."""
    load = load_settings(load_format, quantization, group_size)
    folder = model_folder(model, weights=load_format is LoadFormat.AUTO)
    settings = EngineSettings(
        plan=PlanSettings(degree=degree, atoms=atoms, layout=layout.value),
        load=load,
        dtype=dtype,
        max_model_len=max_model_len,
        threads=threads,
        device=chosen_device(device, launcher, ray_address, degree),
        enforce_eager=enforce_eager,
        gpu_memory_utilization=gpu_memory_utilization,
        check=check,
        all_reduce=all_reduce_mode(all_reduce, disable_custom_all_reduce),
        model_files=model_files.value,
        kv_pages=batch_size * pages_for(prompt_tokens + new_tokens),
    )
    spec, _ = prepare(folder, settings)
    sampling = SamplingSettings(max_tokens=new_tokens, ignore_eos=True)
    check_requests(spec, [[0] * prompt_tokens] * batch_size, [sampling] * batch_size)
    workload = Workload(
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
    )
    with launchers(launcher, ray_address, degree, threads, settings.device) as new_launcher:
        with spinner(f"starting {degree} ranks", as_json):
            engine = Engine(folder, settings, new_launcher())
        with engine, spinner("measuring", as_json):
            found = measure(engine, workload)
    if as_json:
        print_json({**dataclasses.asdict(found), "rotary": engine.spec.rotary.report()})
    else:
        _print(found, workload, degree)


def _print(found: Throughput, workload: Workload, degree: int) -> None:
    table = Table("", "time", "tokens/s", title=f"tp {degree}, batch {workload.batch_size}")
    table.add_row(
        f"prefill of {workload.prompt_tokens}",
        f"{found.prefill_s:.3f} s",
        f"{found.prefill_tokens_per_s:.0f}",
    )
    table.add_row(
        "decode step", f"{found.decode_ms_per_step:.2f} ms", f"{found.decode_tokens_per_s:.1f}"
    )
    console.print(table)
    console.print(
        f"{human_bytes(found.weights_bytes)} of weights a step; memory reads "
        f"{found.read_bandwidth_gb_s:.1f} GB/s: the least possible time is "
        f"{found.bandwidth_share:.0%} of a step. Outside kernels {found.overhead_share:.0%}, in "
        f"collectives {found.collectives_share:.0%}"
    )
