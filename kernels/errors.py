"""The errors that a user can meet. Every room raises one of these, never a bare Exception."""

from __future__ import annotations


class IsobitError(Exception):
    """Something the user can act on.

    `code` is stable (`E-PLAN-GROUP`); `message` names the thing, the numbers and the way out, and
    lists every offender, one a line.
    """

    exit_status = 2

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


class InputError(IsobitError):
    """A file, a setting or an argument is wrong."""


class EnvironmentFault(IsobitError):
    """The machine cannot do what was asked: a missing device, library or instruction set."""


class RankFault(IsobitError):
    """A rank died, hung or disagreed while running."""

    exit_status = 1
