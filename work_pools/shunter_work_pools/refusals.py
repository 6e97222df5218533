"""Refusals on their way into the audit: the first of a kind at once, those that follow it as one entry for all of them.

Whoever has a wrong token may send it a thousand times a second, or once a second for months; that must fill no database.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace

from shunter_work_pools.queue import audit
from shunter_work_pools.queue.audit import Deed
from shunter_work_pools.storage.store import Store

#: Kinds that are kept apart, of strangers and of those who are known; of more only how many there were.
MOST = 200
#: Seconds after an entry until the next of its kind.
EVERY = 600.0

#: Who, what that is, from where, what, answer.
_Kind = tuple[str, str, str, str, int]


@dataclass
class _Told:
    """Refusals of one kind: ``times`` since the last entry, the first of them ``deed``; the next is due at ``due``."""

    deed: Deed
    times: int
    due: float


class Refusals:
    """What was refused since this was last written.

    Args:
        store: where the audit is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._clock = asyncio.get_running_loop().time
        self._told: dict[_Kind, _Told] = {}
        self._kept = {True: 0, False: 0}

    def note(self, deed: Deed) -> None:
        """Somebody was refused something."""
        key = (deed.who, deed.kind, deed.address, deed.action, deed.status)
        told = self._told.get(key)
        if told is None and self._kept[not deed.who] >= MOST:
            # Strangers come from as many addresses as they like: what they do is not to hide what the others do.
            known = "" if not deed.who else "known"
            deed = replace(
                deed,
                who="",
                kind="",
                address="",
                action="more",
                target="",
                detail={"of": known} if known else {},
            )
            key = (known, "", "", "more", 0)
            told = self._told.get(key)
        if told is None:
            told = self._told[key] = _Told(deed, 0, -math.inf)
            self._kept[not key[0]] += 1
        if not told.times:
            told.deed = deed
        told.times += 1

    async def write(self, *, all_of_them: bool = False) -> None:
        """Write down what is due.

        Args:
            all_of_them: what is not, too: nobody will come again.

        Raises:
            Unavailable: the store cannot be written; they are kept.
        """
        now = self._clock()
        due = [(key, one) for key, one in self._told.items() if all_of_them or one.due <= now]
        for key, one in due:
            if not one.times:  # it has been quiet since
                del self._told[key]
                self._kept[not key[0]] -= 1
        told = [(one, one.times) for _, one in due if one.times]
        if not told:
            return
        deeds = [
            replace(one.deed, detail=one.deed.detail | ({"times": times} if times > 1 else {}))
            for one, times in told
        ]
        await self._store.write(lambda tx: audit.write(tx, deeds))
        for one, times in told:
            one.times -= times
            one.due = now + EVERY
