"""Notes: what launches wait for, in the words of their engines, as agents tell it at each sync."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Row, bindparam, select, update

from shunter_work_pools.contracts.agents import Held
from shunter_work_pools.contracts.states import Actor
from shunter_work_pools.queue.events import event_row, record
from shunter_work_pools.storage.schema import events, leases
from shunter_work_pools.storage.store import Tx

#: Events of notes of one attempt: a cluster may say something else every second for days.
MOST_EVENTS = 20

_HELD = (
    select(leases)
    .where(leases.c.run_id.in_(bindparam("wanted", expanding=True)), leases.c.agent_id == bindparam("agent"))
    .order_by(leases.c.run_id)
    .with_for_update()
)
_SET = update(leases).where(leases.c.run_id == bindparam("run")).values(note=bindparam("new_note"))
_SAID = select(events.c.run_id, events.c.attempt, events.c.data).where(
    events.c.run_id.in_(bindparam("wanted", expanding=True)), events.c.kind == "waiting"
)


def is_news(lease: Row[Any], hold: Held) -> bool:
    """Whether an agent says another note than the server has. (What has started waits for nothing.)"""
    return lease.started_at is None and _words(hold) != lease.note


def _words(hold: Held) -> str | None:
    """Without NUL, which Postgres does not keep."""
    return hold.note.replace("\0", "\N{REPLACEMENT CHARACTER}") or None


def take_notes(tx: Tx, agent_id: int, holds: Collection[Held]) -> None:
    """Keep what an agent says of attempts that it holds; those that are not its own (any more) are passed over."""
    said = {(hold.run, hold.attempt, hold.epoch): hold for hold in holds}
    rows = tx.conn.execute(_HELD, {"wanted": [hold.run for hold in holds], "agent": agent_id}).all()
    changed = {
        lease.run_id: (lease.attempt, _words(hold))
        for lease in rows
        if (hold := said.get((lease.run_id, lease.attempt, lease.epoch))) and is_news(lease, hold)
    }
    if not changed:
        return
    tx.conn.execute(_SET, [{"run": run_id, "new_note": note} for run_id, (_, note) in changed.items()])
    told: dict[tuple[Any, int], set[str]] = {}
    for run_id, attempt, data in tx.conn.execute(_SAID, {"wanted": list(changed)}):
        told.setdefault((run_id, attempt), set()).add(data["note"])
    record(
        tx,
        [
            event_row(run_id, "waiting", Actor.AGENT, tx.now, attempt, note=note)
            for run_id, (attempt, note) in changed.items()
            if note is not None and _is_told(note, told.get((run_id, attempt), set()))
        ],
    )
    tx.changes.runs.update(changed)


def _is_told(note: str, before: set[str]) -> bool:
    """Each once, and not too many: some engines go to and fro between two."""
    return note not in before and len(before) < MOST_EVENTS
