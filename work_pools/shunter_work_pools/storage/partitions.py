"""Daily partitions of ``events`` on Postgres, made ahead of the days they are for."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shunter_work_pools.contracts.base import micros, moment
from shunter_work_pools.storage.store import Tx

AHEAD_DAYS = 3


def make_partitions(tx: Tx) -> None:
    """Make the partitions of today and the coming days; nothing to do on SQLite.

    A day of which events fell into the default partition already stays there.
    """
    if not tx.postgres:
        return
    today = moment(tx.now).replace(hour=0, minute=0, second=0, microsecond=0)
    for ahead in range(AHEAD_DAYS):
        day = today + timedelta(days=ahead)
        name = f"events_{day:%Y%m%d}"
        if tx.conn.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is not None:
            continue
        start, end = micros(day), micros(day + timedelta(days=1))
        try:
            with tx.conn.begin_nested():
                tx.conn.execute(
                    text(f"CREATE TABLE {name} PARTITION OF events FOR VALUES FROM ({start}) TO ({end})")
                )
        except DBAPIError as exc:
            # 23514: the default partition has rows of that day; 42P07: another server was faster.
            if getattr(exc.orig, "sqlstate", None) not in ("23514", "42P07"):
                raise
