"""Does the checkpoint hold what its config says? All contradictions at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from isobit.errors import DamagedError, InputError, NotSupportedError

from ..checkpoint.checkpoint import Checkpoint
from ..contents.contradictions import Contradiction, contradictions
from ..contents.edited_sizes import edited_sizes
from ..contents.expected_tensors import expected_tensors
from ..contents.leftovers import Leftovers, sort_leftovers
from ..formats.bitsandbytes import NF4
from ..formats.expected import Expected
from ..model.families import BIAS_FIELDS
from ..model.spec import ModelSpec
from ..names import by_family, plural, spread

log = logging.getLogger("isobit.shard")

_CLASSES = {"damaged": DamagedError, "misused": InputError, "not-supported": NotSupportedError}


def check_checkpoint(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Raise DamagedError, NotSupportedError or InputError for the first contradiction between
    headers and config.

    E-QUANT-LABEL, E-CONFIG-SHAPE, E-CKPT-DTYPE and E-CKPT-TENSOR see contradictions.py; E-CKPT-BIAS
    is for biases that would be lost. Warns of tensors that nothing needs or explains.
    """
    expected = expected_tensors(spec)
    edited, _ = edited_sizes(checkpoint, spec)
    for each in edited:
        raise _error(checkpoint, each, f"{each.where}: ")
    for each in contradictions(checkpoint.entries, spec, expected):
        raise _error(checkpoint, each)
    left = sort_leftovers(checkpoint, spec, leftover_names(checkpoint, spec, expected))
    if left.biases:
        raise lost_biases(checkpoint, spec, left)
    if left.unknown:
        log.warning("%s: %s", checkpoint.folder, unknown_tensors(left))


def _error(checkpoint: Checkpoint, found: Contradiction, place: str = "") -> InputError:
    advice = found.remedy[0].upper() + found.remedy[1:]
    return _CLASSES[found.kind](found.code, f"{checkpoint.folder}: {place}{found.what}\n{advice}")


def leftover_names(
    checkpoint: Checkpoint, spec: ModelSpec, expected: Mapping[str, Expected]
) -> list[str]:
    """Names of stored tensors that are no part of what config.json implies."""
    names = [name for name in checkpoint.entries if name not in expected]

    def is_nf4_part(name: str) -> bool:
        module, part, _ = name.partition(".weight.")
        scheme = spec.scheme(module) if part else None
        return scheme is not None and scheme.format == NF4

    return [name for name in names if not is_nf4_part(name)]


def lost_biases(checkpoint: Checkpoint, spec: ModelSpec, left: Leftovers) -> DamagedError:
    """E-CKPT-BIAS: biases that are not zero, of products that have none by config.json."""
    mlp = [name for name in left.biases if ".mlp." in name]
    wanted = [
        *(["attention_bias"] if len(mlp) < len(left.biases) else []),
        *(["mlp_bias"] if mlp else []),
    ]
    unread = [field for field in wanted if field not in BIAS_FIELDS[spec.family]]
    return DamagedError(
        "E-CKPT-BIAS",
        f"{checkpoint.folder}: {plural(len(left.biases), 'bias', 'biases')} that config.json does "
        f"not announce would be lost, and not zero: {', '.join(by_family(left.biases))}. "
        + (
            f"No {spec.family} model has them, whatever {' and '.join(unread)} says, and "
            "transformers drops them too: config.json names another architecture than the one that "
            "was trained"
            if unread
            else f"Set {' and '.join(wanted)} to true in config.json if the model was trained with "
            "them"
        ),
    )


def unknown_tensors(left: Leftovers) -> str:
    """The sentence that names tensors which nothing needs or explains."""
    return (
        f"{plural(len(left.unknown), 'tensor')} in the files that nothing here needs, and that "
        f"{'is' if len(left.unknown) == 1 else 'are'} not read"
        + spread(left.unknown, lambda same: left.unknown[same[0]], alone=True)
    )
