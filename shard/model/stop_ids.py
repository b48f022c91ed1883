"""The tokens that end an answer: which file names which, and where the files disagree."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.settings import BYTE_ORDER_MARK, read_json, shown
from .config_fields import VALUE, ConfigFields

log = logging.getLogger("isobit.shard")

CONFIG, GENERATION = "config.json", "generation_config.json"
MOST_IDS = 1024


@dataclass(frozen=True, kw_only=True)
class StopIds:
    """Stop tokens by the file that names them; None where a file names none.

    All of them end an answer: chat models name their end of turn in generation_config.json.
    """

    config: tuple[int, ...] | None
    generation: tuple[int, ...] | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them, sorted."""
        return tuple(sorted({*(self.config or ()), *(self.generation or ())}))

    @property
    def sources(self) -> dict[str, tuple[int, ...]]:
        """The files that name any, and which."""
        named = {CONFIG: self.config, GENERATION: self.generation}
        return {file: ids for file, ids in named.items() if ids is not None}

    def disagreement(self) -> str | None:
        """One line where config.json has a stop token that generation_config.json lacks.

        Programs that read generation_config.json alone, as transformers does, go on there. The
        other way round is how chat models are published.
        """
        if self.generation is None or not (more := {*(self.config or ())} - {*self.generation}):
            return None
        said = "; ".join(f"{file} says {_listed(ids)}" for file, ids in self.sources.items())
        return (
            f"stop tokens disagree: {said}. All of them end an answer here; transformers goes on "
            f"after {_listed(tuple(sorted(more)))}"
        )


def config_stop_ids(fields: ConfigFields, vocabulary: int) -> tuple[int, ...] | None:
    """`eos_token_id` of a file; what is no integer is kept in `fields` as E-CONFIG-VALUE.

    An id outside the vocabulary is left out with a warning, as no token ever equals it.
    """
    stop: Any = fields.values.get("eos_token_id")
    if stop is None:
        return None
    ids = stop if isinstance(stop, list) else [stop]
    if len(ids) > MOST_IDS or any(isinstance(n, bool) or not isinstance(n, int) for n in ids):
        fields.offence(
            "damaged",
            VALUE,
            f"eos_token_id is {shown(stop)}, expected an integer or a list of them",
        )
        return None
    if outside := [token for token in ids if not 0 <= token < vocabulary]:
        log.warning(
            "%s: eos_token_id %s is not in the vocabulary, 0 to %d, and never ends an answer",
            fields.where,
            ", ".join(map(shown, outside)),
            vocabulary - 1,
        )
    return tuple(token for token in ids if 0 <= token < vocabulary)


def read_stop_ids(model: Path, config: tuple[int, ...] | None, vocabulary: int) -> StopIds:
    """The stop tokens of a folder, given those of config.json.

    Says in one warning where the files disagree. Raises DamagedError E-MODEL-JSON and
    E-CONFIG-VALUE for a generation_config.json that cannot be read.
    """
    path = model / GENERATION
    if not path.is_file():
        return StopIds(config=config)
    fields = ConfigFields(read_json(path, marked=True), GENERATION)
    if path.read_bytes().startswith(BYTE_ORDER_MARK):
        log.warning(
            "%s begins with a byte order mark, which an editor put there. It is read here; "
            "transformers ignores the whole file",
            GENERATION,
        )
    found = StopIds(config=config, generation=config_stop_ids(fields, vocabulary))
    fields.raise_if_any()
    if (line := found.disagreement()) is not None:
        log.warning("%s", line)
    return found


def _listed(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids)) or "none"
