"""``shunter login`` and ``shunter whoami``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shunter_cli import config_file, faults, output
from shunter_cli.connection import connect
from shunter_cli.durations import local
from shunter_cli.output import Output, OutputOption
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.home import home_from_env
from shunter_work_pools.contracts.profiles import value_of
from shunter_work_pools.contracts.settings import PROFILE_VARIABLE, SETTINGS


def attach(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("login")(login)
    app.command("whoami")(whoami)


def login(
    url: Annotated[str, typer.Argument(help="The server's address, such as https://shunter.example.com.")],
    token_file: Annotated[
        str | None,
        typer.Option(help="A file with the key, - for stdin. Default: it is asked for.", metavar="FILE"),
    ] = None,
    sign_in: Annotated[
        bool | None,
        typer.Option(
            "--sign-in/--no-sign-in",
            help="Sign in with the server's OpenID Connect provider. Default: on a terminal, if it has one.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="The profile that keeps it, by default the one in use.", metavar="NAME"),
    ] = None,
) -> None:
    """Keep a server's address and a key for it in the configuration file.

    The key is tried first; the file is for you alone to read. Where the server has a provider to sign in with, a browser
    takes the key's place, and you get one that holds for twelve hours.
    """
    from shunter_work_pools.client import Client

    if sign_in and token_file is not None:
        raise InvalidInput("--sign-in and --token-file contradict each other")
    address = _address(url)
    token = _signed_in(address, sign_in, token_file) or _token(address, token_file)
    with Client(address, token) as client:
        me = client.whoami()
    path = home_from_env().config_file
    chosen = config_file.set_values(
        path, profile or os.environ.get(PROFILE_VARIABLE), {"api_url": address, "token": token}
    )
    what = me.role.value if me.role is not None else me.kind.value
    output.say(f"logged in to {address} as {me.name} ({what}), kept in profile {chosen} of {path}")
    for name in ("api_url", "token"):
        if os.environ.get(SETTINGS[name].variable):
            faults.tell(f"{SETTINGS[name].variable} is set, and goes before what is kept there")


def _address(url: str) -> str:
    """With the path of the API, which people leave out."""
    from urllib.parse import urlsplit

    address = str(value_of(SETTINGS["api_url"], url, "URL"))
    return address if urlsplit(address).path else f"{address}/api"


def _signed_in(address: str, asked: bool | None, token_file: str | None) -> str | None:
    """A key that the server gives to who signs in with its provider; None: one that he has already is wanted."""
    from shunter_cli.signing_in import sign_in

    if asked is False or token_file is not None or (asked is None and not sys.stdin.isatty()):
        return None
    made = sign_in(address)
    if made is None and asked:
        raise InvalidInput(
            "this server has no provider to sign in with", "Ask an admin for a key: `shunter key create`."
        )
    return None if made is None else made.token


def _token(address: str, token_file: str | None) -> str:
    """The key that one has, from where it is."""
    if token_file is not None and token_file != "-":  # nosec B105 # stdin
        try:
            text = Path(token_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidInput(
                f"the file {token_file} cannot be read: {exc}", "Name another, or - for stdin."
            ) from exc
    elif token_file == "-" or not sys.stdin.isatty():  # nosec B105 # stdin
        text = sys.stdin.readline()
    else:
        from getpass import getpass

        text = getpass(f"Key for {address}: ")
    if not text.strip():
        raise InvalidInput("there is no key", "`shunter key create NAME --role ROLE` makes one.")
    return str(value_of(SETTINGS["token"], text, "the key"))


def whoami(output_as: OutputOption = Output.TABLE) -> None:
    """Show whom the server takes you for."""
    with connect() as client:
        me, address = client.whoami(), client.api_url
    if output_as is not Output.TABLE:
        output.show_object(me, output_as)
        return
    facts = [("name", me.name), ("kind", me.kind.value), ("server", address)]
    if me.role is not None:
        facts.append(("role", me.role.value))
    if me.pools:
        facts.append(("pools", output.words(me.pools)))
    if me.expires_at is not None:
        facts.append(("until", local(me.expires_at)))
    output.facts(facts)
