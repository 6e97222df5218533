"""Limits that deployments share, what runs need of agents, and who paused what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DEMANDING = sa.text("require <> '' OR need <> ''")


def upgrade() -> None:
    # Defaults stay where a server of the version before, on the same Postgres, goes on writing without them.
    op.add_column("agents", sa.Column("found_tags", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("agents", sa.Column("capacity", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("agents", sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("deployments", sa.Column("max_active", sa.Integer()))
    op.add_column(
        "deployments", sa.Column("when_full", sa.String(16), nullable=False, server_default="enqueue")
    )
    op.add_column("leases", sa.Column("due_at", sa.BigInteger()))
    op.add_column("leases", sa.Column("limited", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("leases", sa.Column("superseded_by", sa.String(128)))
    op.create_index("ix_leases_deployment_id", "leases", ["deployment_id"])
    _lanes()
    _tables()


def _lanes() -> None:
    was = "uq_lanes_queue_id_priority_deployment_id_require_backfill_id"
    columns = ["queue_id", "priority", "deployment_id", "require", "need", "limits", "backfill_id"]
    with op.batch_alter_table("lanes") as batch:
        batch.add_column(sa.Column("need", sa.Text(), nullable=False, server_default=sa.text("''")))
        batch.add_column(sa.Column("limits", sa.Text(), nullable=False, server_default=sa.text("''")))
        batch.drop_constraint(was, type_="unique")
        batch.create_unique_constraint("uq_lanes_key", columns)
    _without_abilities()
    op.create_index(
        "ix_lanes_demanding",
        "lanes",
        ["queue_id", "require", "need"],
        postgresql_where=DEMANDING,
        sqlite_where=DEMANDING,
    )


def _without_abilities() -> None:
    """``~limits`` was demanded of agents of protocol 2; older ones are not served any more."""
    connection = op.get_bind()
    lanes = sa.table(
        "lanes",
        *map(sa.column, ("id", "queue_id", "priority", "deployment_id", "require", "backfill_id")),
    )
    ready = sa.table("ready", sa.column("lane_id"))
    same = ("queue_id", "priority", "deployment_id", "backfill_id")
    found = connection.execute(sa.select(lanes).where(lanes.c.require.like("%~limits%"))).all()
    for lane in found:
        require = " ".join(word for word in lane.require.split() if word != "~limits")
        twin = connection.scalar(
            sa.select(lanes.c.id).where(
                lanes.c.require == require, *(lanes.c[name] == getattr(lane, name) for name in same)
            )
        )
        if twin is None:
            connection.execute(sa.update(lanes).where(lanes.c.id == lane.id).values(require=require))
        else:
            connection.execute(sa.update(ready).where(ready.c.lane_id == lane.id).values(lane_id=twin))
            connection.execute(sa.delete(lanes).where(lanes.c.id == lane.id))


def _tables() -> None:
    op.create_table(
        "limits",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("tag", sa.String(128)),
        sa.Column("max", sa.Integer()),
        sa.Column("rate_count", sa.Integer()),
        sa.Column("rate_seconds", sa.Float()),
        sa.Column("strategy", sa.String(16), nullable=False),
        sa.Column("full_until", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limits"),
        sa.UniqueConstraint("name", name="uq_limits_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_limits_tag", "limits", ["tag"])
    op.create_table(
        "lane_limits",
        sa.Column("lane_id", SERIAL, nullable=False),
        sa.Column("limit_id", SERIAL, nullable=False),
        sa.ForeignKeyConstraint(["lane_id"], ["lanes.id"], name="fk_lane_limits_lane_id"),
        sa.ForeignKeyConstraint(["limit_id"], ["limits.id"], name="fk_lane_limits_limit_id"),
        sa.PrimaryKeyConstraint("lane_id", "limit_id", name="pk_lane_limits"),
    )
    op.create_index("ix_lane_limits_limit_id_lane_id", "lane_limits", ["limit_id", "lane_id"])
    op.create_table(
        "lease_limits",
        sa.Column("limit_id", SERIAL, nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["limit_id"], ["limits.id"], name="fk_lease_limits_limit_id"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["leases.run_id"], name="fk_lease_limits_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("limit_id", "run_id", name="pk_lease_limits"),
    )
    op.create_index("ix_lease_limits_run_id", "lease_limits", ["run_id"])
    op.create_table(
        "limit_starts",
        sa.Column("limit_id", SERIAL, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["limit_id"], ["limits.id"], name="fk_limit_starts_limit_id"),
        sa.PrimaryKeyConstraint("limit_id", "at", "run_id", name="pk_limit_starts"),
    )
    op.create_table(
        "pauses",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("ref_id", SERIAL, autoincrement=False, nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("reason", sa.String(1000), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "ref_id", name="pk_pauses"),
    )
