"""The index of a trace: what was run, which rows and sites were recorded, and what of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from isobit.errors import InputError

from ...shard.model.spec import ModelSpec
from ..scheduler.batch import StepRows
from ..settings.trace import TraceSettings
from .tracer import Run, TraceRecord, record_from

FORMAT = "isobit-trace-1"
SHAPE = ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_size")
MOST_NUMBER = 1 << 40
MOST_RANKS = 1 << 12
Row = tuple[int, int]
"""Of one token: the number of its request, and its position in it."""


@dataclass(frozen=True, kw_only=True)
class TracedSite:
    """A site of a trace; `width` counts its columns without padding, over all ranks."""

    name: str
    width: int
    sampled: bool


@dataclass(frozen=True, kw_only=True)
class TraceIndex:
    """All of a trace but its values.

    `source` is "isobit" or "transformers". `plan` is that of a run of isobit, `invariant` says
    whether its bits are promised. `tokens[r]` are prompt and emitted ids of request r together,
    `prompts[r]` how many of them are the prompt. `records` is [step][rank][record]. `orders` maps
    sites whose columns do not lie in the order of the checkpoint (act-order) to the checkpoint's
    column of each.
    """

    source: str
    model: str
    shape: Mapping[str, int]
    dtype: str
    degree: int
    plan: Mapping[str, Any] | None
    plan_hash: str
    all_reduce: str
    invariant: bool
    software: Mapping[str, str]
    prompts: Sequence[int]
    tokens: Sequence[list[int]]
    errors: Sequence[str | None]
    settings: TraceSettings
    sites: Sequence[TracedSite]
    steps: Sequence[StepRows]
    records: Run
    orders: Mapping[str, list[int]] = field(default_factory=dict)

    def rows(self, step: int, sampled: bool) -> list[Row]:
        """The rows whose values a step recorded, in their order."""
        at, wanted = self.steps[step], self.settings.positions
        rows = at.sampled if sampled else range(len(at.tokens))
        found = [(at.owner[row], at.positions[row]) for row in rows]
        return found if wanted is None else [row for row in found if row[1] in wanted]


def shape_of(spec: ModelSpec) -> dict[str, int]:
    """The sizes that two traces must share to be compared."""
    return {name: getattr(spec, name) for name in (*SHAPE, "vocab_size")}


def pack_index(index: TraceIndex) -> bytes:
    """The msgpack bytes of an index; site names are written once."""
    number = {site.name: i for i, site in enumerate(index.sites)}
    plain = {
        **{name: getattr(index, name) for name in PLAIN},
        "format": FORMAT,
        "settings": index.settings.to_dict(),
        "sites": [asdict(site) for site in index.sites],
        "steps": [asdict(step) for step in index.steps],
        "records": [
            [[[number[r.site], *r.fields()[1:]] for r in rank] for rank in step]
            for step in index.records
        ],
    }
    data = msgpack.packb(plain, unicode_errors="surrogatepass")
    assert data is not None
    return data


PLAIN = (
    "source",
    "model",
    "shape",
    "dtype",
    "degree",
    "plan",
    "plan_hash",
    "all_reduce",
    "invariant",
    "software",
    "prompts",
    "tokens",
    "errors",
    "orders",
)


def unpack_index(data: bytes, where: str) -> TraceIndex:
    """Inverse of pack_index. Raises InputError E-TRACE-INDEX for anything that is no index."""
    try:
        value = msgpack.unpackb(data, unicode_errors="surrogatepass")
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"the format is not {FORMAT}")
        return _checked(value)
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, KeyError) as error:
        message = f"{where} is damaged, or no index of a trace: {error}"
        raise InputError("E-TRACE-INDEX", message) from error
    except (IndexError, AttributeError, RecursionError) as error:
        message = f"{where} is damaged: its parts do not fit together ({error})"
        raise InputError("E-TRACE-INDEX", message) from error


def _checked(value: dict[str, Any]) -> TraceIndex:
    sites = [TracedSite(**site) for site in value["sites"]]
    for site in sites:
        _expect(isinstance(site.name, str) and type(site.sampled) is bool, f"site {site}")
        _numbers([site.width], f"width of {site.name}")
    steps = [StepRows(**step) for step in value["steps"]]
    for number, step in enumerate(steps):
        rows = len(step.tokens)
        _numbers(step.tokens, "tokens")
        _numbers(step.positions, "positions", rows)
        _numbers(step.owner, "owners", rows, len(value["tokens"]))
        _numbers(step.sampled, "sampled rows", None, rows)
        _expect(len(value["records"][number]) == value["degree"], f"ranks of step {number}")
    _expect(len(value["records"]) == len(steps), "steps and their records")
    _expect(type(value["degree"]) is int and 1 <= value["degree"] <= MOST_RANKS, "degree")
    _numbers(value["prompts"], "prompts")
    for tokens in value["tokens"]:
        _numbers(tokens, "tokens")
    known = len(value["tokens"])
    _expect(len(value["prompts"]) == len(value["errors"]) == known, "requests")
    for site, order in value["orders"].items():
        width = next((known.width for known in sites if known.name == site), len(order))
        _numbers(order, f"the order of {site}", width)
        _expect(sorted(order) == list(range(width)), f"the order of {site}")
    for name in ("source", "model", "dtype", "plan_hash", "all_reduce"):
        _expect(isinstance(value[name], str), name)
    for name in ("shape", "software"):
        _expect(isinstance(value[name], dict), name)
    _expect(value["plan"] is None or isinstance(value["plan"], dict), "plan")
    settings = TraceSettings.from_dict(value["settings"])
    for name in ("records", "sites", "ranks", "steps", "positions"):
        chosen, kind = getattr(settings, name), str if name in ("records", "sites") else int
        fits = isinstance(chosen, tuple) and all(type(each) is kind for each in chosen)
        _expect(fits or (chosen is None and kind is int), f"settings: {name}")
    records = [
        [[_record(fields, sites) for fields in rank] for rank in step] for step in value["records"]
    ]
    return TraceIndex(
        **{name: value[name] for name in PLAIN},
        settings=settings,
        sites=sites,
        steps=steps,
        records=records,
    )


def _record(fields: list[Any], sites: list[TracedSite]) -> TraceRecord:
    _numbers([fields[0]], "site of a record", None, len(sites))
    _numbers(fields[3:5], "columns of a record", 2)
    _expect(fields[3] < fields[4], "columns of a record")
    _expect(all(isinstance(text, str) for text in fields[1:3]), "part and digest of a record")
    return record_from([sites[fields[0]].name, *fields[1:]])


def _numbers(
    values: Any, what: str, count: int | None = None, limit: int | None = MOST_NUMBER
) -> None:
    fits = isinstance(values, list) and (count is None or len(values) == count)
    most = MOST_NUMBER if limit is None else limit
    _expect(fits and all(type(n) is int and 0 <= n < most for n in values), what)


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"{what}: not what a trace has")
