"""What all commands that speak to a server have in common: the profile, the connection, what people are told when it fails.

Owns: the options `--profile` and `--json`. Invariant: an expected failure is one line that says what to do. Not here: exit codes
(`exits.py`), profiles in their file (`profiles.py`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from anvil.cli import profiles
from anvil.cli.running import run_async
from anvil.client import (
    AnvilClient,
    BadCredentials,
    ClientError,
    Conflict,
    Invalid,
    NoSuchBucket,
    NoSuchKey,
    PermissionMissing,
    TokenRejected,
    TransferOptions,
    Unreachable,
)

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

TRANSFER = TransferOptions()  # tests put smaller ones here


def client_options(function: Command) -> Command:
    """The options that every such command has."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")(function)
    return click.option(
        "--profile", envvar="ANVIL_PROFILE", metavar="NAME", help="Profile to use (ANVIL_PROFILE; else the default one)."
    )(function)


def run(profile: str | None, work: Callable[[AnvilClient], Awaitable[T]], keys: tuple[str, str] | None = None) -> T:
    """Work with a connection. `keys`: instead of the profile's."""
    name, chosen = profiles.load().named(profile)
    if keys is not None:
        chosen = profiles.Profile(chosen.host, *keys, ca=chosen.ca)

    async def connected() -> T:
        store = profiles.TokenCache(chosen)
        async with AnvilClient(
            chosen.host,
            chosen.client_id,
            chosen.client_secret,
            ca=chosen.ca or None,
            transfer=TRANSFER,
            token_store=store,
        ) as client:
            return await work(client)

    try:
        return run_async(connected())
    except ClientError as error:
        error.message = explain(error, name, chosen.client_id)
        raise
    except BrokenPipeError:
        raise  # the reader of our output has gone
    except OSError as error:
        raise local_failure(error) from None


def secret_of(text: str) -> str:
    """`-`: the first line of standard input, so that the secret is in no list of processes."""
    return sys.stdin.readline().rstrip("\r\n") if text == "-" else text


def explain(error: ClientError, profile: str, client_id: str) -> str:
    """What happened, and what to do about it."""
    if isinstance(error, Unreachable):
        return f"{error.message}: is the server running? (profile {profile})"
    if isinstance(error, (BadCredentials, TokenRejected)):
        return f"{error.message} (profile {profile}; `anvil configure` changes it)"
    if isinstance(error, PermissionMissing):
        if " and " in error.action:
            return f"{error.message}: ask somebody who may for these rights"
        grant = shlex.join(("anvil", "auth", "grant", client_id, error.action, error.resource))
        return f"{error.message}: ask somebody who may for `{grant}`"
    if isinstance(error, (NoSuchBucket, NoSuchKey, Conflict, Invalid)) and error.resource and error.resource not in error.message:
        return f"{error.message.removesuffix('.')}: {shown(error.resource)}"
    if error.request_id and type(error) is ClientError:
        return f"{error.message} (request {error.request_id})"
    return error.message


class LocalFailure(ClientError):
    """This machine's file system said no."""


def local_failure(error: OSError) -> LocalFailure:
    where = f"{error.filename}: " if error.filename is not None else ""
    return LocalFailure(f"{where}{error.strerror or error}")


def shown(text: str) -> str:
    """A key or a name for a terminal: control characters, which could steer it, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
