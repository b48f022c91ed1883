"""Settings of an engine and of a request. Unknown names are errors, since these are dataclasses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isobit.errors import InputError

from ...kernels.gpu.card import MOST_SAMPLED
from ...kernels.step.kv_cache import PAGE
from ...shard.formats.scheme import assumed_quantization
from ...shard.model.spec import DTYPES, ModelSpec, read_spec
from ...shard.plan.plan import PlanSettings
from ..card_memory import check_utilization
from ..collectives.interface import MODES, Mode
from ..devices import CPU, device_names
from .model_files import ModelFiles
from .trace import TraceSettings

PAGE_TOKENS = PAGE
CARD_SHARE = 0.9
ASSUMED = ("int4", "int8")
KERNELS_OF = {"gptq_marlin": "gptq", "awq_marlin": "awq", "auto_round": "auto-round"}
"""Names of vLLM's for methods with kernels of its own, and the method of the files."""
DTYPE_NAMES = {"half": "float16", "float": "float32"}
"""Names that people know from vLLM."""


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Where weights come from. `format` "dummy" makes random ones of the config's shape.

    `quantization` ("int4", "int8") with `group_size` says what dummy weights are when the config
    names no quantization. With a checkpoint it is the method that the config has to name.
    """

    format: str = "auto"
    quantization: str | None = None
    group_size: int = 128


def read_run_spec(model: Path, load: LoadSettings, max_model_len: int | None = None) -> ModelSpec:
    """The spec of a model as it will be run; raises InputError E-LOAD-FORMAT and as read_spec, and
    E-QUANT-METHOD for a config that names another method than `load.quantization`."""
    spec = read_spec(model, max_model_len)
    if load.format not in ("auto", "dummy"):
        raise InputError("E-LOAD-FORMAT", f"load format {load.format!r}: expected auto or dummy")
    if load.quantization is None:
        return spec
    if load.format != "dummy" and load.quantization not in ASSUMED:
        check_method(spec, load.quantization)
        return spec
    if load.format != "dummy" or spec.quantization is not None:
        raise InputError(
            "E-LOAD-FORMAT",
            f"--quantization {load.quantization} is for dummy weights of a config that names no "
            "quantization; isobit quantize makes a quantized checkpoint",
        )
    assumed = assumed_quantization(load.quantization, load.group_size)
    return dataclasses.replace(spec, quantization=assumed)


def check_method(spec: ModelSpec, asked: str) -> None:
    """Raise InputError E-QUANT-METHOD unless the config names the method `asked`, by the names that
    vLLM has for it."""
    found = None if spec.quantization is None else spec.quantization.method
    if KERNELS_OF.get(asked, asked) == found:
        return
    said = "names no quantization" if found is None else f"says {found}"
    raise InputError(
        "E-QUANT-METHOD",
        f"--quantization {asked}: config.json {said}. Leave the option out: the method is read "
        "from there",
    )


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a model is run.

    `dtype` "auto" takes the config's. `kv_pages` is the size of the KV cache in pages of
    PAGE_TOKENS tokens; `max_step_rows` is the longest piece of prompts that one step takes.
    `threads` 0 divides the machine's cores among the ranks of a host. `step_timeout_s` is how long
    the driver waits for a rank before it names it and gives up. `verify_load` compares the loaded
    shards with the file, element by element, before the first step. `check` "step" compares what
    ranks loaded and what every step gave, "full" every site of every layer as well, "off" nothing.
    `all_reduce` "auto" takes "custom", over shared memory, where all ranks share a host,
    "hierarchical" where some do, and "gather" elsewhere or where the self-test fails; "library" is
    not invariant. A collective waits `collective_timeout_s` for the other ranks; what ranks agree
    on before the first step, which they reach each at its own pace, `load_timeout_s`. `trace` keeps
    what was seen at sites, and lets ranks differ. `examine` makes ranks watch their own operations
    and answer the doctor. `model_files` says what hosts do that lack the model's files at the
    driver's path: see model_files.mode.
    `max_model_len` is the longest sequence in tokens, prompt and answer together; None takes
    max_position_embeddings, and for longrope the length that the model was trained with, since
    rotary factors are chosen by it.

    `device` "cpu", "cuda" for a card a rank, or one for each rank, as "cuda:0,cuda:0". On CUDA
    decode runs as graphs; with `enforce_eager` it does not. `gpu_memory_utilization` is the share
    of a card that its ranks may use (None: 0.9); on CUDA `kv_pages` 0 takes all
    pages that there is room for.
    """

    plan: PlanSettings = dataclasses.field(default_factory=PlanSettings)
    load: LoadSettings = dataclasses.field(default_factory=LoadSettings)
    dtype: str = "auto"
    kv_pages: int = 64
    max_step_rows: int = 512
    threads: int = 0
    load_timeout_s: float = 1800.0
    step_timeout_s: float = 300.0
    trace: TraceSettings | None = None
    examine: bool = False
    check: str = "step"
    all_reduce: Mode = "auto"
    collective_timeout_s: float = 20.0
    verify_load: bool = False
    device: str = "cpu"
    enforce_eager: bool = False
    gpu_memory_utilization: float | None = None
    model_files: ModelFiles = "auto"
    max_model_len: int | None = None


def check_collectives(settings: EngineSettings) -> None:
    """Raise InputError E-COLL-MODE or E-COLL-TIMEOUT for settings that cannot work."""
    if settings.all_reduce not in MODES:
        raise InputError(
            "E-COLL-MODE", f"--all-reduce {settings.all_reduce!r}: expected {', '.join(MODES)}"
        )
    if not 0 < settings.collective_timeout_s < settings.step_timeout_s:
        raise InputError(
            "E-COLL-TIMEOUT",
            f"collectives wait {settings.collective_timeout_s:g} s: expected more than 0 and less "
            f"than the {settings.step_timeout_s:g} s of a step",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How tokens are chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 keep every token.

    `seed` and the position alone decide a draw: neither batch nor degree can change it.
    `stop_ids` end an answer besides those of the model.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    stop_ids: tuple[int, ...] = ()


def check_sampling(sampling: SamplingSettings) -> None:
    """Raise InputError E-SAMPLING naming every setting out of range."""
    wrong = []
    if sampling.max_tokens < 1:
        wrong.append(f"max_tokens {sampling.max_tokens}: expected at least 1")
    if not 0 <= sampling.temperature < float("inf"):
        wrong.append(f"temperature {sampling.temperature}: expected 0 (greedy) or more")
    if sampling.top_k < 0:
        wrong.append(f"top_k {sampling.top_k}: expected 0 (all tokens) or more")
    if not 0 < sampling.top_p <= 1:
        wrong.append(f"top_p {sampling.top_p}: expected more than 0 and at most 1")
    if wrong:
        raise InputError("E-SAMPLING", "; ".join(wrong))


def card_share(settings: EngineSettings) -> float:
    """The share of a card that its ranks may use."""
    given = settings.gpu_memory_utilization
    return CARD_SHARE if given is None else given


def most_sampled(settings: EngineSettings) -> int:
    """How many rows of one step may be sampled: on a card as many as memory is planned for."""
    return settings.max_step_rows if settings.device == CPU else MOST_SAMPLED


def check_device(settings: EngineSettings, dtype: torch.dtype) -> None:
    """Raise InputError E-DEVICE for devices that do not fit the ranks, and E-DEVICE-SETTING naming
    every setting that the device cannot take."""
    device_names(settings.device, settings.plan.degree)
    if settings.device == CPU:
        if settings.enforce_eager:
            raise InputError(
                "E-DEVICE-SETTING", "--enforce-eager: there are no graphs on CPUs; leave it out"
            )
        if settings.gpu_memory_utilization is not None:
            raise InputError(
                "E-DEVICE-SETTING", "--gpu-memory-utilization goes with --device cuda; leave it out"
            )
        if settings.kv_pages < 1:
            raise InputError(
                "E-DEVICE-SETTING", f"{settings.kv_pages} pages of KV cache: expected at least 1"
            )
        return
    check_utilization(card_share(settings))
    wrong = []
    if dtype == torch.float32:
        wrong.append("float32: the CUDA kernels take --dtype bfloat16 or float16")
    if settings.check == "full":
        wrong.append("--check full: linear layers are checked on CPUs alone; take --check step")
    if settings.verify_load:
        wrong.append("--verify-load: weights are compared with the file on CPUs alone")
    if settings.examine:
        wrong.append("the doctor watches operations on CPUs alone")
    if wrong:
        raise InputError("E-DEVICE-SETTING", f"--device {settings.device}: " + "; ".join(wrong))


def at_degree(settings: EngineSettings, plan: PlanSettings) -> EngineSettings:
    """The same settings under another plan; of devices named one by one, the first of them."""
    device = ",".join(settings.device.split(",")[: plan.degree])
    return dataclasses.replace(settings, plan=plan, device=device)


def run_dtype(spec: ModelSpec, name: str) -> torch.dtype:
    """The dtype of activations and KV cache; raises InputError E-DTYPE for an unknown name."""
    if name == "auto":
        return spec.torch_dtype
    known = DTYPE_NAMES.get(name, name)
    if known not in DTYPES:
        expected = ", ".join((*DTYPES, *DTYPE_NAMES))
        raise InputError("E-DTYPE", f"--dtype {name!r}: expected auto, {expected}")
    return DTYPES[known]


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """What a rank is told to load."""

    model: Path
    rank: int
    plan: dict
    load: dict
    dtype: str
    kv_pages: int
    threads: int
    hosts: list[str]
    rendezvous: str
    trace: dict | None
    examine: bool
    check: str
    all_reduce: Mode
    collective_timeout_s: float
    load_timeout_s: float
    verify_load: bool
    device: str
    max_step_rows: int
    enforce_eager: bool
    gpu_memory_utilization: float
    max_model_len: int | None


def told_to_ranks(settings: EngineSettings) -> dict[str, Any]:
    """The fields of a RankJob that settings decide, as a message carries them."""
    alike = (
        "dtype",
        "kv_pages",
        "threads",
        "examine",
        "check",
        "all_reduce",
        "collective_timeout_s",
        "load_timeout_s",
        "verify_load",
        "max_step_rows",
        "enforce_eager",
        "max_model_len",
    )
    return {name: getattr(settings, name) for name in alike} | {
        "load": dataclasses.asdict(settings.load),
        "trace": None if settings.trace is None else settings.trace.to_dict(),
        "gpu_memory_utilization": card_share(settings),
    }
