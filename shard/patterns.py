"""Regular expressions out of files, on an engine whose time is linear in the text.

Checkpoint writers match module names with Python's `re`, which can take forever on a few
characters (`(.*.*)*z$`). RE2 cannot. Where both accept a pattern they agree about module names,
which are ASCII; the few notations that both accept and read differently are refused.
https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

import re2

from isobit.errors import DamagedError, NotSupportedError

MOST_CHARACTERS = 4096
MOST_MEMORY = 1 << 19
"""Bytes that RE2 may use for one pattern; a larger one is refused when it is compiled."""
MOST_SHOWN = 80
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_SPELLED = re.compile(r"\^?((?:\w|\\\.)+)(\$?)", re.ASCII)
_READ_APART = ("{,", "[:")
_BACKTRACKING = ("(?!", "(?=", "(?<!", "(?<=", "(?P=", "(?(", "(?>")
_REWRITE = (
    "Lookarounds, conditions and backreferences need an engine that can hang. Write what shall "
    "match instead, such as (q|k|v)_proj; where the first of several patterns decides, as in "
    "GPTQModel's `dynamic`, put one for the exceptions in front"
)


def check_pattern(where: str, expression: str) -> str:
    """Return a regular expression that can be matched; `where` names its place in the file.

    Raises DamagedError E-QUANT-SCHEME for one that Python does not compile either, and
    NotSupportedError E-QUANT-PATTERN for one that RE2 does not take or reads in another way.
    """
    if len(expression) > MOST_CHARACTERS:
        raise NotSupportedError(
            "E-QUANT-PATTERN",
            f"{where}: {shown(expression)} is a regular expression of {len(expression)} "
            f"characters, supported are {MOST_CHARACTERS}. Split it at its outermost |",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise DamagedError(
            "E-QUANT-SCHEME",
            f"{where}: {shown(expression)} is not a regular expression ({error}), expected one "
            "that Python compiles",
        ) from error
    reason = _unsupported(expression)
    if reason is not None:
        raise NotSupportedError(
            "E-QUANT-PATTERN",
            f"{where}: the regular expression {shown(expression)} is not supported: {reason}",
        )
    return expression


def matches(expression: str, text: str) -> bool:
    """Whether a checked pattern matches at the start of a module's name, as `re.match`."""
    literal = _literal(expression)
    if literal is not None:
        name, whole = literal
        return text == name if whole else text.startswith(name)
    return _compiled(expression).match(text) is not None


def found_in(expression: str, text: str) -> bool:
    """Whether a checked pattern matches anywhere in a module's name, as `re.search`."""
    return _compiled(expression).search(text) is not None


def shown(value: object) -> str:
    """A value out of a file, cut for a message."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text)} characters)"


def _unsupported(expression: str) -> str | None:
    """Why a pattern that Python compiles is not matched here; None for one that is."""
    if not expression.isascii():
        return "module names are ASCII, and so must be the patterns that match them"
    escapes, plain = _ESCAPE.findall(expression), _ESCAPE.sub("  ", expression)
    if any(escape[1] in "123456789" for escape in escapes):
        return _REWRITE
    if found := next((part for part in _READ_APART if part in plain), None):
        return f"Python and RE2 read {found!r} in two ways. Write it differently"
    try:
        _compiled(expression)
    except re2.error as error:
        why = error.args[0]
        why = why.decode() if isinstance(why, bytes) else str(why)
        needs_more = any(group in plain for group in _BACKTRACKING)
        return f"{why}. {_REWRITE}" if needs_more else why
    return None


@lru_cache(maxsize=2048)
def _literal(expression: str) -> tuple[str, bool] | None:
    """The name that a pattern spells out, and whether it ends there; None where it does not.

    Configs list hundreds of such patterns, one a module.
    """
    found = _SPELLED.fullmatch(expression)
    return None if found is None else (found[1].replace("\\", ""), bool(found[2]))


@lru_cache(maxsize=2048)
def _compiled(expression: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MOST_MEMORY
    return re2.compile(expression, options)
