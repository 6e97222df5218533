"""The commit that all attempts of a run share: the first one that fetches its code finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select, tuple_

from shunter_work_pools.contracts.code_sources import GitSource
from shunter_work_pools.queue.catalog import revision_spec
from shunter_work_pools.storage.schema import attempts
from shunter_work_pools.storage.store import Tx


def commits(tx: Tx, rows: Sequence[Any]) -> Mapping[UUID, str]:
    """Run -> commit, of those of some runs whose attempt before had one.

    Args:
        rows: runs that are about to be granted.
    """
    asked = [
        (run.id, run.attempts)
        for run in rows
        if run.attempts
        and isinstance(revision_spec(tx, run.deployment_id, run.revision).work.source, GitSource)
    ]
    if not asked:
        return {}
    last = select(attempts.c.run_id, attempts.c.commit).where(
        tuple_(attempts.c.run_id, attempts.c.number).in_(asked), attempts.c.commit.is_not(None)
    )
    return {row.run_id: row.commit for row in tx.conn.execute(last)}
