"""Rotary settings out of config.json, with what transformers makes of every spelling of them."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

from ..checkpoint.settings import shown
from .config_fields import BOUNDS, ROPE, ConfigFields, is_number
from .rotary import KINDS, Kind, RotarySpec

log = logging.getLogger("isobit.shard")

DEFAULT_THETA = 10000.0
MOST_THETA, MOST_FACTOR = 1e30, 1e6
_CONTEXT = "original_max_position_embeddings"
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KNOWN: dict[Kind, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _CONTEXT},
    "yarn": {
        *("factor", _CONTEXT, "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    },
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor", _CONTEXT},
}


def read_rotary(fields: ConfigFields, head_size: int, positions: int) -> RotarySpec:
    """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before).

    `positions` is max_position_embeddings. What is wrong is kept in `fields` under E-CONFIG-ROPE:
    damaged for bad numbers, misused for two fields that contradict each other, not supported for
    kinds that isobit does not compute.
    """
    config = fields.values
    theta = _theta(fields)
    _refuse_partial(fields)
    read = {
        key: _read(fields, key, theta, head_size, positions)
        for key in ("rope_parameters", "rope_scaling")
        if config.get(key) not in (None, {})
    }
    if not read:
        return RotarySpec(kind="default", theta=theta)
    specs = list(read.values())
    if len(specs) > 1 and specs[0] != specs[1]:
        fields.offence(
            "misused",
            ROPE,
            f"rope_parameters {_settings(config['rope_parameters'])} and rope_scaling "
            f"{_settings(config['rope_scaling'])} contradict each other (transformers takes "
            f"rope_scaling, with a theta of {specs[1].theta:g}). Leave one of them, with its "
            "rope_theta inside",
        )
    return specs[0]


def _theta(fields: ConfigFields) -> float:
    outer = ConfigFields(fields.values, fields.where, ROPE, fields.shared)
    return outer.number("rope_theta", DEFAULT_THETA, 1, MOST_THETA)


def _refuse_partial(fields: ConfigFields) -> None:
    """A share of each head that is turned: no family that isobit runs was trained with one."""
    share = fields.values.get("partial_rotary_factor")
    if share not in (None, 1, "1", "1.0"):
        fields.offence(
            "not-supported",
            ROPE,
            f"partial_rotary_factor {shown(share)}: turning a part of each head is not implemented",
        )


def _read(
    fields: ConfigFields, key: str, theta: float, head_size: int, positions: int
) -> RotarySpec:
    rope, config, before = fields.nested(key, ROPE), fields.values, fields.count
    standard = RotarySpec(kind="default", theta=theta)
    if nested := [name for name, value in rope.values.items() if isinstance(value, dict)]:
        rope.offence(
            "not-supported",
            ROPE,
            f"settings of their own for {', '.join(map(shown, nested))}: rotary embeddings that "
            "differ from layer to layer are not implemented",
        )
        return standard
    _refuse_partial(rope)
    kind = _kind(rope)
    inner = rope.number("rope_theta", theta, 1, MOST_THETA)
    if inner != theta and config.get("rope_theta") is not None:
        rope.offence(
            "misused",
            ROPE,
            f"rope_theta {inner:g} in it and rope_theta {theta:g} beside it contradict each other "
            "(transformers takes the inner one). Leave one of them",
        )
    if kind not in KINDS:
        rope.offence(
            "not-supported",
            ROPE,
            f"rotary type {shown(kind)} is not implemented. Implemented: {', '.join(KINDS)}",
        )
    if fields.count > before:
        return standard
    kind = cast(Kind, kind)
    if odd := sorted(rope.values.keys() - _COMMON - _KNOWN[kind]):
        log.warning(
            "%s: not known for rotary type %s and not used: %s",
            rope.where,
            kind,
            ", ".join(f"{name} = {shown(rope.values[name])}" for name in odd),
        )
    return _spec(fields, rope, kind, inner, head_size, positions)


def _kind(rope: ConfigFields) -> str:
    """The rotary type by its new name or its old one; "default" where neither field is there.

    A field that is there and says nothing is damage, not the default: transformers fails on it.
    """
    given = {name: rope.text(name, "") for name in ("rope_type", "type") if name in rope.values}
    named = {name: value for name, value in given.items() if value}
    if len(set(named.values())) > 1:
        rope.offence(
            "misused",
            ROPE,
            f"rope_type {named['rope_type']!r} and type {named['type']!r} contradict each other "
            "(transformers takes rope_type). Leave one of them",
        )
    for name in given if not named else ():
        if rope.values[name] in (None, ""):
            rope.offence(
                "damaged",
                ROPE,
                f"{name} is {shown(rope.values[name])}, expected one of {', '.join(KINDS)}. Remove "
                f"the whole setting if positions are not scaled",
            )
    return next(iter(named.values()), "default")


def _spec(
    fields: ConfigFields,
    rope: ConfigFields,
    kind: Kind,
    theta: float,
    head_size: int,
    positions: int,
) -> RotarySpec:
    if kind == "default":
        return RotarySpec(kind=kind, theta=theta)
    if kind in ("linear", "dynamic"):
        return RotarySpec(kind=kind, theta=theta, factor=_factor(rope))
    context = _context(fields, rope, positions)
    if kind == "llama3":
        before = rope.count
        low = rope.number("low_freq_factor", None, 0, MOST_FACTOR)
        high = rope.number("high_freq_factor", None, 0, MOST_FACTOR)
        if low >= high and rope.count == before:
            rope.offence(
                "damaged", ROPE, f"low_freq_factor {low:g} is not below high_freq_factor {high:g}"
            )
        return RotarySpec(
            kind=kind,
            theta=theta,
            factor=_factor(rope),
            low_freq_factor=low,
            high_freq_factor=high,
            original_context=context,
        )
    if kind == "yarn":
        factor = _factor(rope, None if "factor" not in rope.values else positions / context)
        return RotarySpec(
            kind=kind,
            theta=theta,
            factor=factor,
            original_context=context,
            beta_fast=_beta(rope, "beta_fast", 32.0),
            beta_slow=_beta(rope, "beta_slow", 1.0),
            truncate=rope.flag("truncate", True),
            attention_factor=_yarn_attention(rope, factor),
        )
    factor = _factor(rope, positions / context)
    return RotarySpec(
        kind=kind,
        theta=theta,
        factor=factor,
        original_context=context,
        short_factor=_factors(rope, "short_factor", head_size),
        long_factor=_factors(rope, "long_factor", head_size),
        attention_factor=_attention(
            rope,
            1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(context)),
        ),
    )


def _factor(rope: ConfigFields, default: float | None = None) -> float:
    return rope.number("factor", default, 0, MOST_FACTOR)


def _beta(rope: ConfigFields, key: str, default: float) -> float:
    """transformers takes its default for 0, too."""
    return rope.number(key, default, 0, MOST_FACTOR, above=False) or default


def _attention(rope: ConfigFields, default: float) -> float:
    return rope.number("attention_factor", default, 0, MOST_FACTOR)


def _yarn_attention(rope: ConfigFields, factor: float) -> float:
    """What the paper suggests, 0.1 ln(factor) + 1, or the quotient of two of them."""
    above, below = (
        rope.number(key, 0.0, 0, MOST_FACTOR, above=False) for key in ("mscale", "mscale_all_dim")
    )

    def scale(share: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0

    return _attention(rope, scale(above) / scale(below) if above and below else scale(1))


def _context(fields: ConfigFields, rope: ConfigFields, positions: int) -> int:
    """The length before scaling: of the top level, else of the settings, else `positions`."""
    inner, outer = (_whole(owner) for owner in (rope, fields))
    if inner is not None and outer is not None and inner != outer:
        rope.offence(
            "misused",
            ROPE,
            f"{_CONTEXT} {inner} in it and {outer} beside it contradict each other "
            "(transformers takes the outer one). Leave one of them",
        )
    given = inner if outer is None else outer
    return max(2, positions) if given is None else given


def _whole(owner: ConfigFields) -> int | None:
    """The length before scaling that settings name; a whole float counts, as for transformers."""
    value = owner.values.get(_CONTEXT)
    least, most = BOUNDS[_CONTEXT]
    if value is None:
        return None
    if not is_number(value) or value != int(value) or not least <= value <= most:
        owner.offence(
            "damaged",
            ROPE,
            f"{_CONTEXT} is {shown(value)}, expected an integer from {least} to {most}",
        )
        return None
    return int(value)


def _factors(rope: ConfigFields, key: str, head_size: int) -> tuple[float, ...]:
    values = rope.values.get(key)
    wanted = head_size // 2
    if not isinstance(values, list) or len(values) != wanted:
        found = f"{len(values)} numbers" if isinstance(values, list) else shown(values)
        rope.offence("damaged", ROPE, f"{key} is {found}, expected {wanted}, half of head_dim")
        return (1.0,) * wanted
    if odd := [value for value in values if not is_number(value) or not 0 < value <= MOST_FACTOR]:
        rope.offence(
            "damaged",
            ROPE,
            f"{key} has {shown(odd[0])}, expected numbers from 0 to {MOST_FACTOR:g}",
        )
        return (1.0,) * wanted
    return tuple(map(float, values))


def _settings(value: Any) -> str:
    """Settings in a message, without long lists."""
    if not isinstance(value, dict):
        return shown(value)
    return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
