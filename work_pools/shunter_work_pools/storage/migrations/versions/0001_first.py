"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
DOCUMENT = sa.JSON(none_as_null=True)


def _create_events() -> None:
    """On Postgres partitioned by day of ``at``, so that old days are dropped and not deleted.

    The server makes the partitions of the coming days; what falls outside goes to the default one, so
    that an event is never refused.
    """
    columns: list[sa.Column[Any]] = [
        sa.Column("id", SERIAL, nullable=False, autoincrement=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Uuid()),
        sa.Column("deployment_id", SERIAL, autoincrement=False),
        sa.Column("attempt", sa.Integer()),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=16), nullable=False),
        sa.Column("data", DOCUMENT),
    ]
    if op.get_context().dialect.name == "postgresql":
        op.create_table(
            "events",
            *columns,
            sa.PrimaryKeyConstraint("id", "at", name=op.f("pk_events")),
            postgresql_partition_by="RANGE (at)",
        )
        op.execute("CREATE TABLE events_default PARTITION OF events DEFAULT")
    else:
        op.create_table("events", *columns, sa.PrimaryKeyConstraint("id", name=op.f("pk_events")))
    op.create_index("ix_events_run_id_id", "events", ["run_id", "id"])


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("identity", sa.Uuid(), nullable=False),
        sa.Column("session", sa.Uuid(), nullable=False),
        sa.Column("pools", DOCUMENT, nullable=False),
        sa.Column("queues", DOCUMENT, nullable=False),
        sa.Column("tags", DOCUMENT, nullable=False),
        sa.Column("limit", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sa.UniqueConstraint("name", name=op.f("uq_agents_name")),
    )
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("agent", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("cause", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("claimed_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.String(length=32), nullable=True),
        sa.Column("max_rss_bytes", sa.BigInteger(), nullable=True),
        sa.Column("cpu_seconds", sa.Float(), nullable=True),
        sa.Column("log_size", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "deployments",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
        sa.UniqueConstraint("name", name=op.f("uq_deployments_name")),
    )
    _create_events()
    op.create_table(
        "payloads",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("parameters", DOCUMENT, nullable=False),
        sa.Column("result", DOCUMENT, nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_payloads")),
    )
    op.create_table(
        "pools",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("match", DOCUMENT, nullable=False),
        sa.Column("limit", sa.Integer(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("template", DOCUMENT, nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pools")),
        sa.UniqueConstraint("name", name=op.f("uq_pools_name")),
    )
    op.create_table(
        "run_tags",
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "run_id", name=op.f("pk_run_tags")),
    )
    op.create_table(
        "queues",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("pool_id", SERIAL, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("limit", sa.Integer(), nullable=True),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_queues_pool_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queues")),
        sa.UniqueConstraint("pool_id", "name", name=op.f("uq_queues_pool_id_name")),
    )
    op.create_table(
        "revisions",
        sa.Column("deployment_id", SERIAL, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("spec", DOCUMENT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_revisions_deployment_id")
        ),
        sa.PrimaryKeyConstraint("deployment_id", "number", name=op.f("pk_revisions")),
    )
    op.create_table(
        "schedules",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("deployment_id", SERIAL, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("when", DOCUMENT, nullable=False),
        sa.Column("parameters", DOCUMENT, nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("anchor_at", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_schedules_deployment_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
        sa.UniqueConstraint("deployment_id", "name", name=op.f("uq_schedules_deployment_id_name")),
    )
    op.create_index(op.f("ix_schedules_next_at"), "schedules", ["next_at"], unique=False)
    op.create_table(
        "lanes",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("queue_id", SERIAL, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("deployment_id", SERIAL, nullable=False),
        sa.Column("require", sa.Text(), nullable=False),
        sa.Column("served_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"], name=op.f("fk_lanes_deployment_id")),
        sa.ForeignKeyConstraint(["queue_id"], ["queues.id"], name=op.f("fk_lanes_queue_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lanes")),
        sa.UniqueConstraint(
            "queue_id",
            "priority",
            "deployment_id",
            "require",
            name=op.f("uq_lanes_queue_id_priority_deployment_id_require"),
        ),
    )
    op.create_table(
        "leases",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("agent_id", SERIAL, nullable=False),
        sa.Column("session", sa.Uuid(), nullable=False),
        sa.Column("pool_id", SERIAL, nullable=False),
        sa.Column("queue_id", SERIAL, nullable=False),
        sa.Column("deployment_id", SERIAL, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("granted_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("cancelling", sa.Boolean(), nullable=False),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_leases_agent_id")),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"], name=op.f("fk_leases_deployment_id")),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_leases_pool_id")),
        sa.ForeignKeyConstraint(["queue_id"], ["queues.id"], name=op.f("fk_leases_queue_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_leases")),
    )
    op.create_index(op.f("ix_leases_agent_id"), "leases", ["agent_id"], unique=False)
    op.create_index(op.f("ix_leases_pool_id"), "leases", ["pool_id"], unique=False)
    op.create_index(op.f("ix_leases_queue_id"), "leases", ["queue_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("id_reversed", sa.String(length=32), nullable=False),
        sa.Column("deployment_id", SERIAL, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("pool_id", SERIAL, nullable=True),
        sa.Column("queue_id", SERIAL, nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("tags", DOCUMENT, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("cause", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("late", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("scheduled_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("attempts_forgiven", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("schedule_id", SERIAL, nullable=True),
        sa.Column("slot_at", sa.BigInteger(), nullable=True),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"], name=op.f("fk_runs_deployment_id")),
        sa.ForeignKeyConstraint(["pool_id"], ["pools.id"], name=op.f("fk_runs_pool_id")),
        sa.ForeignKeyConstraint(["queue_id"], ["queues.id"], name=op.f("fk_runs_queue_id")),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_runs_schedule_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_runs_idempotency_key")),
        sa.UniqueConstraint("schedule_id", "slot_at", name=op.f("uq_runs_schedule_id_slot_at")),
    )
    op.create_index("ix_runs_deployment_id_id", "runs", ["deployment_id", "id"], unique=False)
    op.create_index(op.f("ix_runs_id_reversed"), "runs", ["id_reversed"], unique=False)
    op.create_index(
        "ix_runs_late",
        "runs",
        ["id"],
        unique=False,
        postgresql_where=sa.text("late"),
        sqlite_where=sa.text("late = 1"),
    )
    op.create_index("ix_runs_pool_id_id", "runs", ["pool_id", "id"], unique=False)
    op.create_index("ix_runs_scheduled_at_id", "runs", ["scheduled_at", "id"], unique=False)
    op.create_index("ix_runs_state_id", "runs", ["state", "id"], unique=False)
    op.create_table(
        "ready",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("lane_id", SERIAL, nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["lane_id"], ["lanes.id"], name=op.f("fk_ready_lane_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_ready")),
    )
    op.create_index(op.f("ix_ready_due_at"), "ready", ["due_at"], unique=False)
    op.create_index("ix_ready_lane_id_due_at_run_id", "ready", ["lane_id", "due_at", "run_id"], unique=False)
    op.create_index("ix_ready_late_due_at", "ready", ["late", "due_at"], unique=False)
