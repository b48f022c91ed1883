"""What calibration gathers about the inputs of one product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.errors import DamagedError, InputError

from ..checkpoint.safetensors_file import SliceReader, TensorEntry, read_header
from ..checkpoint.safetensors_writer import SafetensorsWriter

PANEL = 1024
# int8 codes reach from -128 to 127; a scale of absmax / 127.5 uses all of them.
INT8_SPAN = 127.5
_PARTS = ("products", "abs_sum", "abs_max", "rows", "counts")


@dataclass(frozen=True, kw_only=True)
class StatisticsSettings:
    """`dtype` of the Hessian: float32, or float64. `rows_per_sample` inputs are kept whole.

    Kept rows are spread evenly over a sample; SmoothQuant's search needs some. Raises InputError
    E-QUANT-SETTING.
    """

    dtype: torch.dtype = torch.float32
    rows_per_sample: int = 4

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64) or self.rows_per_sample < 0:
            raise InputError(
                "E-QUANT-SETTING",
                f"statistics: dtype {self.dtype}, rows_per_sample {self.rows_per_sample}: expected "
                "float32 or float64, and 0 or more",
            )


class Statistics:
    """Sums over the inputs x [K] of one product; products with the same input share them.

    Samples are added one by one in the order of their numbers, each in calls of the same shape, so
    the bits do not depend on how they were batched. (They do depend on the number of threads that
    the BLAS library uses.)
    """

    def __init__(self, k: int, settings: StatisticsSettings | None = None) -> None:
        settings = settings or StatisticsSettings()
        self.k, self.settings = k, settings
        self.tokens, self.first, self.last = 0, -1, -1
        self._products = torch.zeros(k, k, dtype=settings.dtype)
        self._abs_sum = torch.zeros(k, dtype=torch.float64)
        self._abs_max = torch.zeros(k)
        self._rows: list[torch.Tensor] = []

    def add(self, sample: int, inputs: torch.Tensor) -> None:
        """Add all tokens [T, K] of a sample; numbers must rise from call to call.

        Raises InputError E-QUANT-ORDER, E-QUANT-NAN.
        """
        if sample <= self.last:
            raise InputError(
                "E-QUANT-ORDER",
                f"sample {sample} after sample {self.last}: samples are added once, in the order "
                "of their numbers, so that sums have the same bits in every run",
            )
        assert inputs.shape[1:] == (self.k,)
        self.first = sample if self.first < 0 else self.first
        self.last = sample
        if not len(inputs):
            return
        magnitude = inputs.detach().abs()
        highest = magnitude.amax(dim=0).float()
        if not bool(highest.isfinite().all()):
            bad = int((~highest.isfinite()).sum())
            raise InputError(
                "E-QUANT-NAN",
                f"sample {sample}: NaN or infinity in {bad} of {self.k} input features. Run "
                "calibration in the dtype that the model was trained in: float16 ends at 65504",
            )
        torch.maximum(self._abs_max, highest, out=self._abs_max)
        self._abs_sum += magnitude.sum(dim=0, dtype=torch.float64)
        self.tokens += len(inputs)
        self._keep(inputs)
        wide = inputs.detach().to(self.settings.dtype)
        for begin in range(0, self.k, PANEL):
            end = min(begin + PANEL, self.k)
            self._products[:end, begin:end].addmm_(wide[:, :end].T, wide[:, begin:end])

    def hessian(self) -> torch.Tensor:
        """2/n sum x x^T over n tokens: [K, K], symmetric to the bit. Raises E-QUANT-EMPTY."""
        self._check_filled()
        return _mirrored(self._products.clone()).mul_(2 / self.tokens)

    def take_hessian(self) -> torch.Tensor:
        """The same in the memory of the sums, which end here: no sample can be added any more."""
        self._check_filled()
        products, self._products = self._products, torch.empty(0, 0, dtype=self.settings.dtype)
        return _mirrored(products).mul_(2 / self.tokens)

    def abs_mean(self) -> torch.Tensor:
        """Mean |x| of each input feature, float32 [K]: what AWQ needs. Raises E-QUANT-EMPTY."""
        self._check_filled()
        return (self._abs_sum / self.tokens).float()

    def abs_max(self) -> torch.Tensor:
        """Max |x| of each input feature, float32 [K]: for SmoothQuant. Raises E-QUANT-EMPTY."""
        self._check_filled()
        return self._abs_max.clone()

    def input_scale(self) -> float:
        """The static scale of int8 activations, max |x| / 127.5. Raises E-QUANT-EMPTY."""
        return static_input_scale(self.abs_max())

    def rows(self) -> torch.Tensor:
        """Some inputs, float32 [R, K], in the order of samples."""
        return torch.cat(self._rows) if self._rows else torch.empty(0, self.k)

    def _keep(self, inputs: torch.Tensor) -> None:
        count = min(self.settings.rows_per_sample, len(inputs))
        if count:
            picked = torch.arange(count) * len(inputs) // count
            self._rows.append(inputs.detach()[picked].float())

    def _check_filled(self) -> None:
        if not self.tokens:
            raise InputError(
                "E-QUANT-EMPTY",
                f"no token reached this linear layer of {self.k} input features while calibrating. "
                "Give at least one sample of text",
            )

    def _tensors(self) -> dict[str, torch.Tensor]:
        counts = torch.tensor([self.tokens, self.first, self.last, self.settings.rows_per_sample])
        values = (self._products, self._abs_sum, self._abs_max, self.rows(), counts)
        return dict(zip(_PARTS, values, strict=True))

    @classmethod
    def _of(cls, tensors: dict[str, torch.Tensor]) -> Statistics:
        tokens, first, last, rows_per_sample = tensors["counts"].tolist()
        products = tensors["products"]
        settings = StatisticsSettings(dtype=products.dtype, rows_per_sample=rows_per_sample)
        made = cls(0, settings)
        made.k, made.tokens, made.first, made.last = len(products), tokens, first, last
        made._products, made._abs_sum = products, tensors["abs_sum"]
        made._abs_max, made._rows = tensors["abs_max"], [tensors["rows"]]
        return made


def _mirrored(matrix: torch.Tensor) -> torch.Tensor:
    """Copy the upper triangle of [K, K] into the lower one, in place."""
    for begin in range(0, len(matrix), PANEL):
        end = begin + PANEL
        block = matrix[begin:end, begin:end]
        block.copy_(block.triu() + block.triu(1).T)
        matrix[end:, begin:end] = matrix[begin:end, end:].T
    return matrix


def static_input_scale(abs_max: torch.Tensor) -> float:
    """max / 127.5 of largest magnitudes [K]; 1 where nothing was ever different from zero."""
    highest = float(abs_max.max())
    return highest / INT8_SPAN if highest else 1.0


def merge_statistics(parts: Iterable[Statistics]) -> Statistics:
    """Add up statistics of one product over disjoint ranges of samples, in the order of samples.

    The bits depend on the ranges, not on the order of `parts`. Raises InputError E-QUANT-ORDER when
    ranges overlap, E-QUANT-EMPTY without any part.
    """
    ordered = sorted((part for part in parts if part.last >= 0), key=lambda part: part.first)
    if not ordered:
        raise InputError("E-QUANT-EMPTY", "no statistics to merge: calibrate with some samples")
    merged = Statistics._of({n: each.clone() for n, each in ordered[0]._tensors().items()})
    for part in ordered[1:]:
        if part.first <= merged.last or part.k != merged.k:
            raise InputError(
                "E-QUANT-ORDER",
                f"samples {part.first} to {part.last} ({part.k} features) cannot follow "
                f"{merged.first} to {merged.last} ({merged.k} features): ranges must not overlap",
            )
        merged._products += part._products
        merged._abs_sum += part._abs_sum
        torch.maximum(merged._abs_max, part._abs_max, out=merged._abs_max)
        merged._rows += part._rows
        merged.tokens, merged.last = merged.tokens + part.tokens, part.last
    return merged


def save_statistics(path: Path, statistics: Mapping[str, Statistics]) -> None:
    """Write statistics by module name to a safetensors file; sums are kept, so merging goes on."""
    file = SafetensorsWriter(path, {"format": "pt", "isobit": "calibration statistics"})
    for name, each in statistics.items():
        for part, tensor in each._tensors().items():
            file.add(f"{name}.{part}", tensor)
    file.close()


def load_statistics(path: Path, names: Iterable[str] | None = None) -> dict[str, Statistics]:
    """Read what save_statistics wrote, for some modules or all.

    Raises InputError E-QUANT-STATISTICS for a file that lacks a module or is something else, and
    what reading a safetensors file raises.
    """
    entries = {entry.name: entry for entry in read_header(path)}
    stored = [name.removesuffix(".counts") for name in entries if name.endswith(".counts")]
    wanted = stored if names is None else list(names)
    lacking = sorted(
        f"{n}.{part}" for n in wanted for part in _PARTS if f"{n}.{part}" not in entries
    )
    if lacking or not stored:
        raise DamagedError(
            "E-QUANT-STATISTICS",
            f"{path}: not the calibration statistics of this model. Absent: "
            + (", ".join(lacking[:8]) or "everything")
            + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
            + ". Calibrate again",
        )
    with SliceReader() as reader:
        return {name: _read(reader, entries, name) for name in wanted}


def _read(reader: SliceReader, entries: dict[str, TensorEntry], name: str) -> Statistics:
    return Statistics._of({part: reader.read(entries[f"{name}.{part}"]) for part in _PARTS})
