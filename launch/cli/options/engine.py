"""The options of every command that starts ranks, and the settings that they come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from isobit.errors import InputError

from ....runtime.collectives.interface import MODES, Mode
from ....runtime.progress import watched_by
from ....runtime.ranks.launcher import Launcher, cores
from ....runtime.settings.engine import ASSUMED, EngineSettings, LoadSettings
from ....shard.plan.plan import PlanSettings
from ...placing import LauncherName, chosen_device, cluster_address, placed
from ..output import bytes_bar, errors
from .common import (
    Atoms,
    Dtype,
    GroupSize,
    Layout,
    LayoutName,
    MaxModelLen,
    Quantization,
    Threads,
    VerifyLoad,
    assumed_group_size,
)
from .panels import DEVICES, MODEL, RANKS, SUMS


class LoadFormat(StrEnum):
    AUTO = "auto"
    DUMMY = "dummy"


class ModelFilesName(StrEnum):
    AUTO = "auto"
    SAME_PATH = "same-path"
    HEAD = "head"
    HUB = "hub"


RayAddress = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=RANKS,
        help="Place ranks on this Ray cluster: auto or HOST:PORT (default: RAY_ADDRESS).",
    ),
]
Launchers = Annotated[
    LauncherName,
    typer.Option(
        "--launcher",
        rich_help_panel=RANKS,
        help="local: ranks are plain processes of this host. ray: a Ray places them, a private one "
        "without an address. auto: local where all fit this host and no Ray cluster is named.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is loaded and run, but for the number of ranks, which a command asks itself."""

    load_format: Annotated[
        LoadFormat,
        typer.Option(
            rich_help_panel=MODEL,
            help="dummy: random weights of the config's shape; no tokenizer is needed.",
        ),
    ] = LoadFormat.AUTO
    quantization: Quantization = None
    group_size: GroupSize = None
    dtype: Dtype = "auto"
    max_model_len: MaxModelLen = None
    atoms: Atoms = 8
    layout: Layout = LayoutName.PAD
    launcher: Launchers = LauncherName.AUTO
    ray_address: RayAddress = None
    model_files: Annotated[
        ModelFilesName,
        typer.Option(
            metavar="WHERE",
            rich_help_panel=RANKS,
            help="What a host does that lacks the files at MODEL's path. same-path: it is an "
            "error. head: get them from this host. hub: download them. auto: hub for an id, else "
            "same-path.",
        ),
    ] = ModelFilesName.AUTO
    device: Annotated[
        str,
        typer.Option(
            rich_help_panel=DEVICES,
            help="auto (cuda where isobit gpu check has passed, else cpu), cpu, cuda, or a GPU for "
            "each rank: cuda:0,cuda:0 (as plain processes).",
        ),
    ] = "auto"
    threads: Threads = 0
    enforce_eager: Annotated[
        bool,
        typer.Option(
            "--enforce-eager", rich_help_panel=DEVICES, help="On CUDA: decode without CUDA graphs."
        ),
    ] = False
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=DEVICES, help="On CUDA: share of a GPU's memory to use (default: 0.9)."
        ),
    ] = None
    check: Annotated[
        str,
        typer.Option(
            rich_help_panel=SUMS,
            help="Ranks against each other: step (every step), full (every site), or off.",
        ),
    ] = "step"
    verify_load: VerifyLoad = False
    all_reduce: Annotated[
        str,
        typer.Option(
            rich_help_panel=SUMS,
            help="How ranks add up: custom (shared memory), hierarchical (custom inside each host, "
            "gather between hosts), gather, library (not invariant), or auto.",
        ),
    ] = "auto"
    disable_custom_all_reduce: Annotated[
        bool,
        typer.Option(
            "--disable-custom-all-reduce",
            rich_help_panel=SUMS,
            help="Gather through the library, add up by the same tree.",
        ),
    ] = False
    collective_timeout: Annotated[
        float,
        typer.Option(rich_help_panel=SUMS, help="Seconds that a sum over ranks waits for a rank."),
    ] = EngineSettings().collective_timeout_s

    @property
    def dummy(self) -> bool:
        """Whether the weights are made up, so that there is no file of them and no text."""
        return self.load_format is LoadFormat.DUMMY

    @property
    def plan(self) -> PlanSettings:
        """The plan of one rank; a command puts its number of ranks into it."""
        return PlanSettings(atoms=self.atoms, layout=self.layout.value)

    def settings(self, degree: int, most_ranks: int | None = None) -> EngineSettings:
        """The settings of an engine of `degree` ranks, where `most_ranks` will run at most.

        Raises InputError E-USAGE for options that exclude each other, and as `chosen_device`.
        """
        return EngineSettings(
            plan=dataclasses.replace(self.plan, degree=degree),
            load=self._load(),
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            threads=self.threads,
            device=chosen_device(
                self.device, self.launcher, self.ray_address, most_ranks or degree
            ),
            enforce_eager=self.enforce_eager,
            gpu_memory_utilization=self.gpu_memory_utilization,
            verify_load=self.verify_load,
            check=self.check,
            all_reduce=self._all_reduce(),
            collective_timeout_s=self.collective_timeout,
            model_files=self.model_files.value,
        )

    def refuse(self, command: str, reasons: Mapping[str, str]) -> None:
        """Raise InputError E-USAGE naming every option of `reasons` that is not at its default.

        `reasons` says by field why the command cannot take it.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        wrong = [
            f"--{name.replace('_', '-')}: isobit {command} {reason}"
            for name, reason in reasons.items()
            if getattr(self, name) != defaults[name]
        ]
        if wrong:
            raise InputError("E-USAGE", "\n".join(wrong))

    @contextmanager
    def launchers(self, most_ranks: int, device: str) -> Iterator[Callable[[], Launcher]]:
        """As `launchers`, with these options."""
        with launchers(
            self.launcher, self.ray_address, most_ranks, self.threads, device
        ) as new_launcher:
            yield new_launcher

    def _load(self) -> LoadSettings:
        size = assumed_group_size(self.quantization, self.group_size)
        wrong = []
        if not self.dummy and self.quantization in ASSUMED:
            wrong.append(
                f"--quantization {self.quantization} goes with --load-format dummy; "
                "isobit quantize makes a quantized checkpoint"
            )
        if self.dummy and self.verify_load:
            wrong.append("--verify-load: --load-format dummy has no file to be compared with")
        if wrong:
            raise InputError("E-USAGE", "\n".join(wrong))
        return LoadSettings(
            format=self.load_format.value, quantization=self.quantization, group_size=size
        )

    def _all_reduce(self) -> Mode:
        mode, gathers = self.all_reduce, self.disable_custom_all_reduce
        if gathers and mode in ("custom", "hierarchical"):
            raise InputError(
                "E-USAGE", f"--all-reduce {mode} and --disable-custom-all-reduce exclude"
            )
        if mode not in MODES:
            raise InputError("E-COLL-MODE", f"--all-reduce {mode!r}: expected {', '.join(MODES)}")
        return "gather" if gathers and mode == "auto" else mode  # pyright: ignore


@contextmanager
def launchers(
    name: LauncherName, ray_address: str | None, most_ranks: int, threads: int, device: str
) -> Iterator[Callable[[], Launcher]]:
    """Yield a maker of launchers of ranks on `device`; a private Ray lives as long as the block.

    Warns when `threads` of each of `most_ranks` ranks are more than this machine has cores.
    """
    if cluster_address(name, ray_address) is None and most_ranks * threads > cores():
        ranks = "1 rank" if most_ranks == 1 else f"{most_ranks} ranks"
        errors.print(
            f"[yellow]warning[/] {ranks} with --threads {threads}: {most_ranks * threads} threads "
            f"on {cores()} cores wait for each other; --threads 0 shares the cores evenly",
            soft_wrap=True,
        )
    with watched_by(bytes_bar), placed(name, ray_address, most_ranks, device) as new_launcher:
        yield new_launcher
