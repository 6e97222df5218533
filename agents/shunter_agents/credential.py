"""The agent's own token, in its state folder: got by joining, renewed by the agent itself.

``SHUNTER_HOME/agents/NAME/credential`` (JSON, 0600) is replaced as a whole. The agent makes each token itself and writes
it down before the server hears of it, so there is no moment in which a token is good that is not on its disk:

1. a token is made and written down as ``next``; what is shown is the old one;
2. the server is told its hash, as often as it takes: that is answered alike each time;
3. it is written down as ``token``, and shown from then on. Its first use ends the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shunter_agents.killpoints import reached
from shunter_agents.state_folder import default_name
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.identities import PREFIXES, Credential, Kind

_WHICH = "Name a pool with --pool, or join first: `shunter agent join URL`."
FILE, DRAFT = "credential", "credential.joining"


def new_token() -> str:
    """A token for an agent, of 256 bits of chance."""
    return PREFIXES[Kind.AGENT] + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """All that the server is told of it."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Stored:
    """What is in the file.

    Attributes:
        url: of the server that it is for; it is shown to no other.
        next: the token that follows, which the server may know or not.
        received_at: wall clock, seconds since the epoch.
        renew_after: seconds after that.
        expires_at: RFC 3339, for people.
    """

    url: str
    agent: str
    pools: list[str]
    token: str
    received_at: float
    renew_after: float
    expires_at: str
    next: str | None = None


def of_answer(url: str, answer: Credential, token: str) -> Stored:
    """What is kept of a token that the server has just taken."""
    return Stored(
        url,
        answer.agent,
        answer.pools,
        token,
        time.time(),
        answer.renew_after,
        answer.expires_at.isoformat(timespec="seconds"),
    )


class OwnCredential:
    """The credential of an agent that joined; as a callable it gives the token to be shown now.

    Args:
        folder: the state folder.
        stored: what is in its file.
    """

    def __init__(self, folder: Path, stored: Stored) -> None:
        self.stored = stored
        self._path = folder / FILE

    def __call__(self) -> str:
        """The token to be shown now."""
        return self.stored.token

    def due_in(self) -> float:
        """Seconds until it should be renewed; never more than it was given, whatever the wall clock says."""
        since = max(0.0, time.time() - self.stored.received_at)
        return max(0.0, self.stored.renew_after - since)

    def following(self) -> str:
        """The token that is to follow, on disk.

        Raises:
            OSError: it cannot be written.
        """
        if self.stored.next is None:
            stored = replace(self.stored, next=new_token())
            write(self._path, stored)
            self.stored = stored
        assert self.stored.next is not None
        return self.stored.next

    def follow(self, answer: Credential) -> None:
        """The server has taken the token that follows: show it from now on.

        Raises:
            OSError: it cannot be written; the old one goes on.
        """
        assert self.stored.next is not None
        stored = of_answer(self.stored.url, answer, self.stored.next)
        reached("before-credential-replaced")
        write(self._path, stored)
        reached("after-credential-replaced")
        self.stored = stored


def stored_in(folder: Path) -> Stored | None:
    """The credential of a state folder; None if that agent did not join.

    Raises:
        InvalidInput: it cannot be read.
    """
    path = folder / FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return Stored(**found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as exc:
        raise InvalidInput(
            f"the credential {path} cannot be read: {exc}",
            "Run as the user who joined, or join again: `shunter agent join URL`.",
        ) from exc


def joined(agents: Path) -> list[Stored]:
    """The credentials of all agents of this home that joined, by name.

    Raises:
        InvalidInput: one cannot be read.
    """
    try:
        folders = sorted(agents.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise InvalidInput(f"the folder {agents} cannot be read: {exc.strerror}") from exc
    return [stored for folder in folders if (stored := stored_in(folder)) is not None]


def chosen(agents: Path, name: str | None, pools: list[str]) -> Stored | None:
    """The credential of the agent that was meant; None: it did not join, and what it serves was said.

    Args:
        name, pools: what was said; without either, it is the one that joined.

    Raises:
        InvalidInput: nothing says which agent is meant, or the credential cannot be read.
    """
    if name is not None or pools:
        found = stored_in(agents / (name or default_name(pools[0])))
        if found is None and not pools:
            raise InvalidInput(
                f"agent {name} has not joined in this home, and nothing says what it serves", _WHICH
            )
        return found
    there = joined(agents)
    if len(there) == 1:
        return there[0]
    if there:
        names = ", ".join(one.agent for one in there)
        raise InvalidInput(f"several agents have joined in this home: {names}", "Say which with --name.")
    raise InvalidInput("nothing says which pool to serve", _WHICH)


def draft_of(folder: Path, url: str) -> str:
    """The token of a join that has begun, on disk; that of a former try for the same server, if there is one.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / DRAFT
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(path.read_text("utf-8"))
        if known["url"] == url and isinstance(known["token"], str):
            return str(known["token"])
    token = new_token()
    _write(path, {"url": url, "token": token})
    return token


def settle(folder: Path, stored: Stored) -> None:
    """Write down the credential of a join that is done.

    Raises:
        OSError: it cannot be written.
    """
    write(folder / FILE, stored)
    (folder / DRAFT).unlink(missing_ok=True)


def write(path: Path, stored: Stored) -> None:
    """Replace the file as a whole, for its owner alone, on disk when this returns.

    Raises:
        OSError: it cannot be written; it is as it was.
    """
    _write(path, asdict(stored))


def _write(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)  # its mode may be another
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
