"""Ray's authentication, said explicitly: left to itself Ray decides by the files it finds.

A `ray.init()` of yesterday leaves ~/.ray/auth_token behind, and from then on `ray start --head`
asks for tokens without a word, so that other hosts cannot join.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from isobit.errors import InputError

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
MODES = ("token", "disabled")


def private_auth() -> dict[str, str]:
    """Variables of a Ray that nobody else may use: a random token."""
    return {MODE: "token", TOKEN: secrets.token_hex(32)}


def cluster_auth() -> dict[str, str]:
    """Variables for a given cluster: the mode that is set, else by whether there is a token.

    A token does no harm where none is asked for. Raises InputError E-RAY-AUTH for an unknown mode,
    for a token that is missing, and for a token file that cannot be read.
    """
    mode = os.environ.get(MODE)
    if mode is not None and mode not in MODES:
        raise InputError("E-RAY-AUTH", f"{MODE}={mode!r}: expected {' or '.join(MODES)}")
    if mode == "disabled":
        return {MODE: mode}
    source = token_source()
    if source is None and mode == "token":
        raise InputError(
            "E-RAY-AUTH",
            f"{MODE}=token, but there is no token: set {TOKEN}, or {TOKEN_FILE} to the file of the "
            "cluster's token (`ray get-auth-token` on its head prints it)",
        )
    if source == TOKEN_FILE:
        try:
            Path(os.environ[TOKEN_FILE]).read_bytes()
        except OSError as error:
            raise InputError(
                "E-RAY-AUTH", f"{TOKEN_FILE}={os.environ[TOKEN_FILE]}: {error.strerror}"
            ) from error
    return {MODE: "disabled" if source is None else "token"}


def token_source() -> str | None:
    """Where Ray takes the token from, in its own order, or None when there is none."""
    for variable in (TOKEN, TOKEN_FILE):
        if os.environ.get(variable):
            return variable
    own = Path.home() / ".ray" / "auth_token"
    return str(own) if own.exists() else None


@contextmanager
def ray_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for Ray, and put back what was there.

    Ray keeps mode and token of its first use; it is told to read them again.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    if "ray" in sys.modules:
        from ray import _raylet

        _raylet.Config.initialize("")  # pyright: ignore[reportAttributeAccessIssue]
        _raylet.AuthenticationTokenLoader.instance().reset_cache()  # pyright: ignore[reportAttributeAccessIssue]
