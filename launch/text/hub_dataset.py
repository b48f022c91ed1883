"""Text from a dataset on the Hugging Face hub, read from the hub's own Parquet copy of it.

The hub converts every public dataset to Parquet files CONFIG/SPLIT/0000.parquet under the revision
refs/convert/parquet (https://huggingface.co/docs/dataset-viewer/parquet). Reading those runs no
code of the dataset, whatever it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import EnvironmentFault, InputError

REVISION = "refs/convert/parquet"
_WORD = r"\w[\w.-]*"
_NAME = re.compile(
    rf"(?P<id>{_WORD}(/{_WORD})?)(@(?P<config>{_WORD}))?(:(?P<split>{_WORD})(:(?P<column>[^:]+))?)?"
)
_ROWS = 256
_WAY_OUT = "Fetch it once on a machine that reaches the hub and copy HF_HOME, or give --text FILE"


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """One text column of one split of a dataset."""

    id: str
    config: str
    split: str
    column: str

    def texts(self) -> Iterator[str]:
        """The texts of all rows in order; further files are fetched when they are reached.

        Raises InputError E-CALIB-DATASET when the hub or the cache has no such thing, and
        EnvironmentFault E-CALIB-PYARROW when the reader of Parquet is not installed.
        """
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise EnvironmentFault(
                "E-CALIB-PYARROW",
                "--dataset reads Parquet files with pyarrow, which is not installed: "
                "pip install pyarrow, or give --text FILE",
            ) from error
        for path in self._files():
            try:
                file = parquet.ParquetFile(path)
                self._check_column(file.schema_arrow)
                for batch in file.iter_batches(batch_size=_ROWS, columns=[self.column]):
                    yield from (text for text in batch.column(0).to_pylist() if text)
            except (ArrowException, OSError) as error:
                raise self._error(f"{path} cannot be read ({error})") from error

    def _files(self) -> Iterator[Path]:
        """Fetch the files of the split one by one; the hub shortens large ones to "partial"."""
        for split in (self.split, f"partial-{self.split}"):
            number = 0
            while (path := self._fetch(f"{self.config}/{split}/{number:04d}.parquet")) is not None:
                yield path
                number += 1
            if number:
                return
        choices = ", ".join(self._choices()) or "nothing that the hub made Parquet files of"
        raise self._error(f"no such config or split. There is: {choices}")

    def _fetch(self, name: str) -> Path | None:
        """The file in the cache; None when the hub says that there is none."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
        )

        try:
            with _quiet():
                found = hf_hub_download(self.id, name, repo_type="dataset", revision=REVISION)
            return Path(found)
        except LocalEntryNotFoundError as error:
            raise self._error(
                f"{name} is not in the cache, and the hub cannot be reached. {_WAY_OUT}"
            ) from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError, ValueError) as error:
            first = str(error).splitlines()[0][:200]
            raise self._error(f"the hub did not give it ({first}). {_WAY_OUT}") from error

    def _choices(self) -> list[str]:
        """What could have been asked for, as it is written on the command line."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            names = HfApi().list_repo_files(self.id, repo_type="dataset", revision=REVISION)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise self._error(f"the hub does not say what it holds ({error})") from error
        parts = [name.split("/") for name in names if name.endswith(".parquet")]
        return sorted({f"{self.id}@{p[0]}:{p[1].removeprefix('partial-')}" for p in parts if p[2:]})

    def _check_column(self, schema: Any) -> None:
        texts = [field.name for field in schema if str(field.type) in ("string", "large_string")]
        if self.column not in texts:
            raise self._error(f"no column of texts of that name. It has: {', '.join(texts)}")

    def _error(self, what: str) -> InputError:
        name = f"{self.id}@{self.config}:{self.split}:{self.column}"
        return InputError("E-CALIB-DATASET", f"--dataset {name}: {what}")


def parse_dataset(name: str) -> HubDataset:
    """Parse ID[@CONFIG][:SPLIT[:COLUMN]]; raises InputError E-CALIB-DATASET."""
    if (found := _NAME.fullmatch(name)) is None:
        raise InputError(
            "E-CALIB-DATASET",
            f"--dataset {name!r}: expected ID[@CONFIG][:SPLIT[:COLUMN]], as in "
            "Salesforce/wikitext@wikitext-2-raw-v1:train:text",
        )
    return HubDataset(
        id=found["id"],
        config=found["config"] or "default",
        split=found["split"] or "train",
        column=found["column"] or "text",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and its notes on retries to itself: a failure is told once."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
        enable_progress_bars()
