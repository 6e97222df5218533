"""Pauses on the command line: who pauses and why, and how that is shown."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from shunter_cli.durations import ago, local

if TYPE_CHECKING:
    from shunter_work_pools.contracts.pauses import Pause, PausePatch

    P = TypeVar("P", bound=PausePatch)

    class Paused(Protocol):
        """What can be paused."""

        paused: bool
        pause: Pause | None


ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why, for those who wonder later.", metavar="TEXT", show_default=False)
]


def who() -> str:
    """Whoever types, as ``USER@HOST``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have them
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:200]


def patch(kind: type[P], paused: bool, reason: str = "") -> P:
    """The request that pauses or resumes; ``kind`` is its contract."""
    return kind(paused=paused, by=who(), **({"reason": reason} if reason else {}))


def state(one: Paused) -> str:
    """``paused`` or ``ready``."""
    return "paused" if one.paused else "ready"


def column(found: Iterable[Paused]) -> tuple[str, ...]:
    """The heading of a table's column that says who paused what, and why; none if nobody paused anything."""
    return ("PAUSED BY",) if any(one.pause for one in found) else ()


def cell(one: Paused, columns: tuple[str, ...]) -> tuple[str, ...]:
    """What stands below :func:`column`."""
    return tuple(brief(one.pause) if one.pause else "-" for _ in columns)


def brief(pause: Pause) -> str:
    """Who, and why: ``ops@desk: new drivers``."""
    return ": ".join(filter(None, (pause.by, pause.reason))) or "somebody"


def in_words(pause: Pause) -> str:
    """Since when, by whom and why, on one line."""
    by = f" by {pause.by}" if pause.by else ""
    return f"since {local(pause.at)} ({ago(pause.at)}){by}" + (f": {pause.reason}" if pause.reason else "")


def facts(one: Paused) -> list[tuple[str, str]]:
    """The lines of ``inspect`` that tell of a pause, if there is one."""
    if one.pause is None:
        return []
    lines = [("paused", f"{local(one.pause.at)} ({ago(one.pause.at)})")]
    lines += [("paused by", one.pause.by)] if one.pause.by else []
    return lines + ([("reason", one.pause.reason)] if one.pause.reason else [])
