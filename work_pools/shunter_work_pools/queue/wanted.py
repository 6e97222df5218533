"""Wanted: how much a pool would run at this moment, had it agents without end. For what adds agents, and takes them away.

It goes by the very statement and limits of a claim. What a pause or a limit holds back is not wanted: more agents would
start nothing of it. Whether an agent to come has the tags and the capacity that runs need, nobody can know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select

from shunter_work_pools.queue.claim import HEADS, Room
from shunter_work_pools.storage.schema import ready
from shunter_work_pools.storage.store import Tx


def could_start(tx: Tx, pool_ids: Sequence[int]) -> Counter[int]:
    """How many runs of each of some pools could start now; reads only."""
    heads: list[Row[Any]] = list(tx.conn.execute(HEADS, {"pools": pool_ids, "now": tx.now}))
    room = Room(tx, heads, locking=False)
    in_lane = select(ready.c.lane_id, func.count()).where(ready.c.due_at <= tx.now).group_by(ready.c.lane_id)
    due = {row[0]: row[1] for row in tx.conn.execute(in_lane)} if heads else {}
    found: Counter[int] = Counter()
    for head in heads:
        count = max(0, min(due[head.id], room.left(head)))
        room.use(head, count)
        found[head.pool_id] += count
    return found
