"""Before something is destroyed for good, somebody is asked."""

from __future__ import annotations

import sys

from shunter_work_pools.contracts.errors import InvalidInput, ShunterError
from shunter_work_pools.contracts.plain_text import plain


def removal(what: str, *, yes: bool) -> None:
    """Go on if ``yes`` was said, or is said now.

    Args:
        what: everything that goes, and how much of it: ``pool gpu with 2 queues``.

    Raises:
        InvalidInput: nobody is there to be asked.
        ShunterError: the answer is not yes.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(
            f"this deletes {what}, and nobody is there to be asked", "Add --yes if you mean it."
        )
    sys.stderr.write(f"Delete {plain(what)}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ShunterError("nothing was deleted")
