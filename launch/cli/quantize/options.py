"""What the options of `isobit quantize` mean together; none is ignored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from isobit.errors import InputError

from ....runtime.calibration.job import CalibrateSettings
from ....runtime.devices import CPU
from ....runtime.ranks.launcher import Launcher
from ....shard.formats.scheme import CHANNEL
from ....shard.quantize.gptq import GptqSettings
from ....shard.quantize.method import MethodSettings
from ....shard.quantize.scheme import QuantizeSettings
from ...placing import LauncherName
from ..options.engine import launchers

DEFAULT_GROUP, DEFAULT_DAMPING = 128, 0.01
USUAL_MSE = 2.4


class Scheme(StrEnum):
    INT4 = "int4"
    INT8 = "int8"
    W8A8 = "w8a8"


class Activations(StrEnum):
    DYNAMIC = "dynamic"
    STATIC = "static"


class Method(StrEnum):
    ABSMAX = "absmax"
    GPTQ = "gptq"
    AWQ = "awq"
    AWQ_GPTQ = "awq+gptq"
    SMOOTHQUANT = "smoothquant"


class Format(StrEnum):
    COMPRESSED_TENSORS = "compressed-tensors"
    GPTQ = "gptq"
    GPTQ_V2 = "gptq_v2"
    AWQ = "awq"


SCHEMES = {
    Method.ABSMAX: (Scheme.INT4, Scheme.INT8, Scheme.W8A8),
    Method.GPTQ: (Scheme.INT4, Scheme.INT8, Scheme.W8A8),
    Method.AWQ: (Scheme.INT4, Scheme.INT8),
    Method.AWQ_GPTQ: (Scheme.INT4, Scheme.INT8),
    Method.SMOOTHQUANT: (Scheme.W8A8,),
}
"""What each method can make, the default first."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """Where calibration runs; `launcher` None stands for not given."""

    degree: int
    launcher: LauncherName | None
    ray_address: str | None
    restart: bool

    def given(self) -> list[str]:
        """The options that were given, by name."""
        options = {
            "--tensor-parallel-size": self.degree != 1,
            "--launcher": self.launcher is not None,
            "--ray-address": self.ray_address is not None,
            "--restart": self.restart,
        }
        return [name for name, yes in options.items() if yes]

    @contextmanager
    def ranks(self) -> Iterator[Launcher | None]:
        """A launcher of ranks for the block; None at degree 1, which is this process."""
        if self.degree == 1:
            yield None
            return
        name = LauncherName.AUTO if self.launcher is None else self.launcher
        with launchers(name, self.ray_address, self.degree, 0, CPU) as new_launcher:
            yield new_launcher()


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Options as they were given; None and () stand for not given."""

    method: Method
    scheme: Scheme | None
    format: Format
    group_size: int | None
    symmetric: bool | None
    keep: tuple[str, ...]
    budget: float | None
    text: tuple[Path, ...]
    dataset: str | None
    samples: int | None
    length: int | None
    desc_act: bool
    damp_percent: float | None
    mse: bool
    activations: Activations | None
    run: CalibrationRun

    @property
    def made(self) -> Scheme:
        """The scheme that is made."""
        return self.scheme or SCHEMES[self.method][0]

    @property
    def named_scheme(self) -> str:
        """The scheme as reports have it."""
        return self.made.value if self.budget is None else "mixed"

    @property
    def exponent(self) -> float:
        """The exponent of the error that the search for a smaller range minimizes; 0: no search."""
        return USUAL_MSE if self.mse else 0.0

    def stored(self) -> QuantizeSettings:
        """How weights are stored. Raises InputError E-USAGE for options that do not go together."""
        self._check()
        wide = self.made is Scheme.W8A8
        size = DEFAULT_GROUP if self.group_size is None else self.group_size
        usual = self.method not in (Method.AWQ, Method.AWQ_GPTQ)
        return QuantizeSettings(
            bits=4 if self.made is Scheme.INT4 else 8,
            group_size=CHANNEL if wide else size,
            symmetric=usual if self.symmetric is None else self.symmetric,
            int8_activations=wide,
            static_activations=self.activations is Activations.STATIC,
            keep=self.keep,
            format=self.format.value,
        )

    def calibrated(self) -> CalibrateSettings | None:
        """Settings of a method that needs text, else None. Raises InputError as stored does, and
        E-QUANT-SETTING for a damping out of range."""
        stored = self.stored()
        if self.method is Method.ABSMAX:
            return None
        damping = DEFAULT_DAMPING if self.damp_percent is None else self.damp_percent
        GptqSettings(damp_percent=damping)
        method = MethodSettings(
            method=self.method.value,
            damp_percent=damping,
            desc_act=self.desc_act,
            mse=self.exponent,
        )
        return CalibrateSettings(stored=stored, method=method)

    def _check(self) -> None:
        method, wide = self.method, self.made is Scheme.W8A8
        wrong = []
        if self.made not in SCHEMES[method]:
            wrong.append(
                f"--scheme {self.made}: --method {method} makes {', '.join(SCHEMES[method])}"
            )
        if wide and self.group_size is not None:
            wrong.append("--group-size: w8a8 has one scale per output")
        if wide and self.symmetric is False:
            wrong.append("--asymmetric: w8a8 is symmetric")
        if method not in (Method.GPTQ, Method.AWQ_GPTQ):
            given = {"--desc-act": self.desc_act, "--damp-percent": self.damp_percent is not None}
            wrong += [
                f"{name}: goes with --method gptq and awq+gptq"
                for name, yes in given.items()
                if yes
            ]
        if self.mse and method is Method.AWQ:
            wrong.append("--mse: --method awq searches for smaller ranges on its own")
        if self.mse and method is Method.SMOOTHQUANT:
            wrong.append("--mse: --method smoothquant rounds to nearest within the whole range")
        if self.activations is not None and not wide:
            wrong.append(f"--activations: {self.made} has none that are rounded; w8a8 has")
        if self.activations is Activations.STATIC and method is Method.ABSMAX:
            wrong.append("--activations static: needs calibration, by gptq or smoothquant")
        calibrates = method is not Method.ABSMAX or self.budget is not None
        if self.budget is not None:
            wrong += self._wrong_with_budget()
        if not calibrates:
            given = {"--text": self.text, "--dataset": self.dataset}
            given |= {"--samples": self.samples, "--length": self.length}
            named = [name for name, value in given.items() if value not in (None, ())]
            wrong += [
                f"{name}: --method absmax needs no calibration"
                for name in (*named, *self.run.given())
            ]
        elif bool(self.text) == (self.dataset is not None):
            what = (
                "--budget measures" if method is Method.ABSMAX else f"--method {method} calibrates"
            )
            wrong.append(f"{what}: give --text FILE, or --dataset ID")
        elif self.run.degree == 1:
            alone = [name for name in self.run.given() if name != "--restart"]
            wrong += [f"{name}: goes with -tp 2 or more" for name in alone]
        if wrong:
            raise InputError("E-USAGE", "\n  ".join(wrong))

    def _wrong_with_budget(self) -> list[str]:
        wrong = []
        if self.method is Method.SMOOTHQUANT:
            wrong.append("--budget: --method smoothquant makes w8a8, which has one width")
        elif self.scheme is not None:
            wrong.append(f"--scheme {self.scheme}: --budget chooses the widths")
        if self.method is Method.ABSMAX:
            wrong += [f"{name}: --method absmax runs in one process" for name in self.run.given()]
        return wrong
