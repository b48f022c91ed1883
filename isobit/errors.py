"""The errors that a user can meet. Every room raises one of these, never a bare Exception."""

from __future__ import annotations

from typing import Literal

Kind = Literal["misused", "damaged", "not-supported", "environment", "rank", "internal"]


class IsobitError(Exception):
    """Something the user can act on.

    `code` is stable (`E-PLAN-GROUP`); `message` names the thing, the numbers and the way out, and
    lists every offender, one a line.
    """

    exit_status = 2
    kind: Kind

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


class InputError(IsobitError):
    """An argument, a setting or a combination of them is wrong: the command was misused."""

    kind = "misused"


class DamagedError(InputError):
    """A file is wrong. The message holds the bytes or the numbers that show it."""

    kind = "damaged"


class NotSupportedError(InputError):
    """A file is right, and isobit cannot run what it describes. No advice to restore it."""

    kind = "not-supported"


class EnvironmentFault(IsobitError):
    """The machine cannot do what was asked: a missing device, library or instruction set."""

    kind = "environment"


class RankFault(IsobitError):
    """A rank died, hung or disagreed while running."""

    exit_status = 1
    kind = "rank"


class InternalError(IsobitError):
    """A fault of isobit's own. No verdict was reached."""

    kind = "internal"


_CLASSES: dict[str, type[IsobitError]] = {
    each.kind: each
    for each in (
        InputError,
        DamagedError,
        NotSupportedError,
        EnvironmentFault,
        RankFault,
        InternalError,
    )
}


def error_of_kind(kind: str, code: str, message: str) -> IsobitError:
    """The error that another process raised, from its `kind`, code and message."""
    return _CLASSES[kind](code, message)
