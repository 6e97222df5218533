"""Become an agent: an enrolment token is changed for a credential of the agent's own.

Whatever dies in between, the same command again goes on where it stopped, and spends the enrolment token once: the
credential's token is made and written down here before the server is asked.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from shunter_agents.credential import Stored, draft_of, hash_of, joined, of_answer, settle
from shunter_agents.killpoints import reached
from shunter_agents.state_folder import StateFolder, check_name, default_name
from shunter_work_pools.client import Client
from shunter_work_pools.contracts.errors import InvalidInput, ServerUnreachable, Unauthenticated
from shunter_work_pools.contracts.identities import PREFIXES, JoinRequest, Kind


def root_of(url: str) -> str:
    """The root of the API at an address that somebody typed: ``/api`` is added where there is no path."""
    url = url.strip().rstrip("/")
    try:
        return url if urlsplit(url).path else f"{url}/api"
    except ValueError:
        return url  # the client tells what is wrong with it


def already(agents: Path, url: str, name: str | None, *, away_too: bool) -> Stored | None:
    """The credential of an agent of this home that has joined this server, and holds.

    Args:
        agents: folder of the state folders.
        name: None: whichever it is, if there is one alone.
        away_too: take it also while the server cannot be asked.

    Raises:
        ServerUnreachable: the server cannot be asked.
        InvalidInput: a credential cannot be read.
    """
    found = [one for one in joined(agents) if one.url == url and name in (None, one.agent)]
    if len(found) != 1:
        return None
    try:
        with Client(url, found[0].next or found[0].token) as client:
            client.whoami()
    except Unauthenticated:
        if found[0].next is not None:
            return _older(found[0])
        return None
    except ServerUnreachable:
        if not away_too:
            raise
    return found[0]


def _older(stored: Stored) -> Stored | None:
    """The same, of a credential whose renewal was broken off before the server heard of it."""
    try:
        with Client(stored.url, stored.token) as client:
            client.whoami()
    except Unauthenticated:
        return None
    return stored


def enrolment(text: str, where: str) -> str:
    """An enrolment token as it was given.

    Raises:
        InvalidInput: it is none; what it is is not told.
    """
    token = text.strip()
    if not token.startswith(PREFIXES[Kind.ENROLMENT]) or not token.isascii() or not token.isprintable():
        raise InvalidInput(
            f"what {where} holds is not an enrolment token, which begins with {PREFIXES[Kind.ENROLMENT]}",
            "`shunter agent invite --pool POOL` makes one.",
        )
    return token


def join(
    agents: Path,
    url: str,
    token: str,
    name: str | None,
    *,
    made: Callable[[Path], object] = lambda folder: None,
) -> Stored:
    """Join a server; the credential is on disk when this returns.

    Args:
        agents: folder of the state folders.
        url: root of the server's API.
        token: for enrolment.
        name: of the agent; None: HOST-POOL.
        made: told of the state folder, once it is there.

    Raises:
        InvalidInput: the name cannot be one, an agent of that name runs here, or the folder cannot be written.
        Refused: the server does not take the token, or the name.
        ServerUnreachable: it does not answer.
    """
    with Client(url, token) as client:
        if name is None:
            name = default_name(client.whoami().pools[0])
        folder = StateFolder(agents, check_name(name))
        try:
            own = draft_of(folder.path, url)
            reached("after-join-drafted")
            host = socket.gethostname()[:255]
            answer = client.join(JoinRequest(name=name, token_hash=hash_of(own), host=host))
            reached("after-join-answered")
            stored = of_answer(url, answer, own)
            settle(folder.path, stored)
            reached("after-join-settled")
            made(folder.path)
        except OSError as exc:
            raise InvalidInput(
                f"the agent's state folder {folder.path} cannot be written: {exc.strerror or exc}",
                "Free space there, or set SHUNTER_HOME to another folder; then say the same again.",
            ) from exc
        finally:
            folder.close()
    return stored
