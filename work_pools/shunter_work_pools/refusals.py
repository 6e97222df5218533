"""Refusals on their way into the audit: those of one kind that come together are one entry.

Whoever has a wrong token may send it a thousand times a second; that must fill no database.
"""

from __future__ import annotations

from dataclasses import replace

from shunter_work_pools.queue import audit
from shunter_work_pools.queue.audit import Deed
from shunter_work_pools.storage.store import Store

#: Kinds that are kept apart until they are written; of more only how many there were.
MOST = 200


class Refusals:
    """What was refused since this was last written.

    Args:
        store: where the audit is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: dict[tuple[str, str, str, str, int], tuple[Deed, int]] = {}

    def note(self, deed: Deed) -> None:
        """Somebody was refused something."""
        key = (deed.who, deed.kind, deed.address, deed.action, deed.status)
        if key not in self._told and len(self._told) >= MOST:
            key, deed = (
                ("", "", "", "", 0),
                replace(deed, who="", kind="", address="", action="more", target=""),
            )
        first, times = self._told.get(key, (deed, 0))
        self._told[key] = first, times + 1

    async def write(self) -> None:
        """Write them down.

        Raises:
            Unavailable: the store cannot be written; they are kept.
        """
        if not self._told:
            return
        told, self._told = self._told, {}
        deeds = [
            replace(deed, detail=deed.detail | ({"times": times} if times > 1 else {}))
            for deed, times in told.values()
        ]
        try:
            await self._store.write(lambda tx: audit.write(tx, deeds))
        except BaseException:
            for key, (deed, times) in told.items():
                first, since = self._told.get(key, (deed, 0))
                self._told[key] = first, times + since
            raise
