"""``--watch`` of lists: shown again each second in a terminal, on a pipe when something has changed."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shunter_cli import output
from shunter_cli.faults import tell
from shunter_work_pools.contracts.plain_text import plain

T = TypeVar("T")

#: Seconds between two looks.
EVERY = 1.0


def show(
    ask: Callable[[], T],
    draw: Callable[[T], None],
    *,
    watch: bool,
    what: Callable[[T], Any] = lambda found: found,
) -> None:
    """Draw what ``ask`` answers; with ``watch`` again and again until Ctrl-C.

    A server that goes away meanwhile is waited for; the first question must be answered.

    Args:
        draw: prints it by :mod:`shunter_cli.output`.
        what: the part of an answer that counts as a change.

    Raises:
        ShunterError: as ``ask``.
    """
    found = ask()
    if not watch:
        draw(found)
    elif sys.stdout.isatty():
        _live(found, ask, draw)
    else:
        _blocks(found, ask, draw, what)


def _live(found: T, ask: Callable[[], T], draw: Callable[[T], None]) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(console=output.console(), auto_refresh=False, vertical_overflow="ellipsis") as view:
        trouble = ""
        while True:
            with output.kept() as text:
                draw(found)
            view.update(Text.from_ansi(text.getvalue() + plain(trouble)), refresh=True)
            time.sleep(EVERY)
            answer, trouble = _again(ask)
            found = found if answer is None else answer


def _blocks(found: T, ask: Callable[[], T], draw: Callable[[T], None], what: Callable[[T], Any]) -> None:
    draw(found)
    told = ""
    while True:
        time.sleep(EVERY)
        if _nobody_reads():
            raise BrokenPipeError
        answer, trouble = _again(ask)
        if answer is None:
            if not told:
                tell(trouble)
        elif what(answer) != what(found):
            output.say("")
            draw(answer)
            found = answer
        told = trouble


def _nobody_reads() -> bool:
    """Whether the reader of the pipe has gone, which a write would tell; but there may be nothing to write."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _again(ask: Callable[[], T]) -> tuple[T | None, str]:
    """The answer, or why there is none at this moment."""
    from shunter_work_pools.contracts.errors import ServerUnreachable, Unavailable

    try:
        return ask(), ""
    except (ServerUnreachable, Unavailable) as exc:
        return None, f"{exc.detail}; waiting for it to come back"
