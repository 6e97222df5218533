"""How far schedules have come, backfills, and what is deleted."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _deletable()
    op.add_column("runs", sa.Column("backfill_id", SERIAL))
    failed = sa.text("state IN ('Failed', 'Crashed', 'TimedOut')")
    columns = ["state", "ended_at"]
    op.create_index("ix_runs_failed", "runs", columns, postgresql_where=failed, sqlite_where=failed)
    op.add_column("leases", sa.Column("backfill_id", SERIAL))
    op.create_index("ix_leases_backfill_id", "leases", ["backfill_id"])
    op.create_index(
        "ix_events_deployment_id_id",
        "events",
        ["deployment_id", "id"],
        postgresql_where=sa.text("run_id IS NULL"),
        sqlite_where=sa.text("run_id IS NULL"),
    )
    op.create_table(
        "backfills",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("schedule_id", SERIAL, nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name="fk_backfills_schedule_id"),
        sa.PrimaryKeyConstraint("id", name="pk_backfills"),
        sa.UniqueConstraint(
            "schedule_id", "start_at", "end_at", name="uq_backfills_schedule_id_start_at_end_at"
        ),
    )
    _lanes()
    _schedules()


def _deletable() -> None:
    """What is deleted; and an id is never given to another row, for SQLite would use the last one again."""
    never_again = {"recreate": "always", "table_kwargs": {"sqlite_autoincrement": True}}
    how: dict[str, Any] = never_again if op.get_context().dialect.name == "sqlite" else {}
    for table in ("pools", "queues", "deployments"):
        with op.batch_alter_table(table, **how) as batch:
            batch.add_column(sa.Column("deleted_at", sa.BigInteger()))
            if table == "deployments":
                batch.add_column(sa.Column("logs_kept_after", sa.Uuid()))
                batch.add_column(sa.Column("events_kept_after", sa.Uuid()))
    with op.batch_alter_table("agents", **how):
        pass
    op.add_column(
        "attempts", sa.Column("log_deleted", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def _lanes() -> None:
    """A backfill has lanes of its own."""
    was = "uq_lanes_queue_id_priority_deployment_id_require"
    columns = ["queue_id", "priority", "deployment_id", "require", "backfill_id"]
    with op.batch_alter_table("lanes") as batch:
        batch.add_column(sa.Column("backfill_id", SERIAL, nullable=False, server_default="0"))
        batch.drop_constraint(was, type_="unique")
        batch.create_unique_constraint(f"{was}_backfill_id", columns)
    with op.batch_alter_table("lanes") as batch:
        batch.alter_column("backfill_id", server_default=None)


def _schedules() -> None:
    """What a schedule says is in the revision already; how far it has come was told by its next slot."""
    op.add_column("schedules", sa.Column("removed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("schedules", sa.Column("done_until", sa.BigInteger(), nullable=False, server_default="0"))
    connection = op.get_bind()
    now = time.time_ns() // 1000
    connection.execute(
        sa.text("UPDATE schedules SET done_until = COALESCE(next_at - 1, :now)").bindparams(now=now)
    )
    named = sa.table("schedules", sa.column("id"), sa.column("deployment_id"), sa.column("name"))
    current = sa.text(
        "SELECT r.deployment_id, r.spec FROM revisions r"
        " JOIN deployments d ON d.id = r.deployment_id AND d.revision = r.number"
    ).columns(deployment_id=sa.BigInteger(), spec=sa.JSON())
    names = {
        row.deployment_id: {schedule["name"] for schedule in row.spec["schedules"]}
        for row in connection.execute(current).all()
    }
    for row in connection.execute(sa.select(named)).all():
        if row.name not in names.get(row.deployment_id, ()):
            connection.execute(
                sa.text("UPDATE schedules SET removed = :yes WHERE id = :id").bindparams(yes=True, id=row.id)
            )
    with op.batch_alter_table("schedules") as batch:
        batch.drop_column("when")
        batch.drop_column("parameters")
        batch.alter_column("removed", server_default=None)
        batch.alter_column("done_until", server_default=None)
