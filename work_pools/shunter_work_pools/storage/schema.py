"""The tables: small hot ones that rows leave again, big cold ones that grow.

Hot: ``ready`` (runs that wait), ``lanes`` (lines of equals among them), ``leases`` (live attempts).
Cold: ``runs``, ``run_tags``, ``payloads``, ``attempts`` (ended ones only; a live attempt *is* its lease)
and ``events``. What a claim costs depends on the hot tables alone.

All times are integer microseconds since 1970-01-01 UTC, on both stores.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Serial = BigInteger().with_variant(Integer, "sqlite")
Time = BigInteger
Document = JSON(none_as_null=True)
State = String(16)
Label = String(128)
#: Condition of runs that ended badly, in the words of an index: a statement must use the same.
FAILED = "state IN ('Failed', 'Crashed', 'TimedOut')"

#: Condition of waiting runs that avoid an agent, likewise.
AVOIDING = "avoid_agent_id IS NOT NULL"

#: Condition of lanes that not every agent can serve, likewise.
DEMANDING = "require <> '' OR need <> ''"

#: An id that was given to a row that is gone is not given to another: much is kept in memory by id.
NEVER_AGAIN: dict[str, Any] = {"sqlite_autoincrement": True}


pools = Table(
    "pools",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("name", Label, nullable=False, unique=True),
    Column("type", String(32), nullable=False),
    Column("match", Document, nullable=False),
    Column("limit", Integer),
    Column("priority", Integer, nullable=False),
    Column("template", Document, nullable=False),
    Column("paused", Boolean(), nullable=False),
    Column("created_at", Time, nullable=False),
    Column("deleted_at", Time),  # then its name has a ~ and its id behind it, and is free for another
    **NEVER_AGAIN,
)

queues = Table(
    "queues",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("pool_id", ForeignKey("pools.id"), nullable=False),
    Column("name", Label, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("limit", Integer),
    Column("paused", Boolean(), nullable=False),
    Column("deleted_at", Time),
    UniqueConstraint("pool_id", "name"),
    **NEVER_AGAIN,
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("name", Label, nullable=False, unique=True),
    Column("revision", Integer, nullable=False),
    Column("paused", Boolean(), nullable=False),
    # As its current revision says: it holds for the runs of all.
    Column("max_active", Integer),
    Column("when_full", String(16), nullable=False, server_default="enqueue"),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("deleted_at", Time),  # its runs go in small batches, then it does
    Column("logs_kept_after", Uuid()),  # of runs up to this one logs, or events, were deleted already
    Column("events_kept_after", Uuid()),
    **NEVER_AGAIN,
)

revisions = Table(
    "revisions",
    metadata,
    Column("deployment_id", ForeignKey("deployments.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("spec", Document, nullable=False),
    Column("created_at", Time, nullable=False),
)

#: What a schedule says is in its deployment's current revision; here is how far it has come.
schedules = Table(
    "schedules",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("deployment_id", ForeignKey("deployments.id"), nullable=False),
    Column("name", Label, nullable=False),
    Column("paused", Boolean(), nullable=False),
    Column("removed", Boolean(), nullable=False),  # no longer in the deployment; runs refer to it
    Column("anchor_at", Time, nullable=False),
    Column("done_until", Time, nullable=False),  # every slot up to this moment was dealt with
    # The first slot after it; NULL: it or its deployment is paused, it is removed or exhausted, or its zone
    # is unknown.
    Column("next_at", Time, index=True),
    UniqueConstraint("deployment_id", "name"),
)

#: Runs of past slots that were asked for together, and how many of them may be active at once.
backfills = Table(
    "backfills",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("schedule_id", ForeignKey("schedules.id"), nullable=False),
    Column("start_at", Time, nullable=False),
    Column("end_at", Time, nullable=False),
    Column("concurrency", Integer),
    Column("created_at", Time, nullable=False),
    UniqueConstraint("schedule_id", "start_at", "end_at"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Uuid(), primary_key=True),
    # Hex digits backwards: people type suffixes, and an index finds prefixes.
    Column("id_reversed", String(32), nullable=False, index=True),
    Column("deployment_id", ForeignKey("deployments.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("pool_id", ForeignKey("pools.id")),
    Column("queue_id", ForeignKey("queues.id")),
    Column("priority", Integer, nullable=False),
    Column("tags", Document, nullable=False),
    Column("state", State, nullable=False),
    Column("cause", String(32)),
    Column("message", Text),
    Column("late", Boolean(), nullable=False),
    Column("created_at", Time, nullable=False),
    Column("scheduled_at", Time, nullable=False),
    Column("started_at", Time),
    Column("ended_at", Time),
    Column("attempts", Integer, nullable=False),  # ended ones
    Column("attempts_forgiven", Integer, nullable=False),  # ended before the last retry by hand
    Column("epoch", Integer, nullable=False),  # of the last grant
    Column("schedule_id", ForeignKey("schedules.id")),
    Column("slot_at", Time),
    Column("backfill_id", Serial),
    Column("idempotency_key", String(200), unique=True),
    UniqueConstraint("schedule_id", "slot_at"),
    Index("ix_runs_state_id", "state", "id"),
    Index("ix_runs_deployment_id_id", "deployment_id", "id"),
    Index("ix_runs_pool_id_id", "pool_id", "id"),
    Index("ix_runs_scheduled_at_id", "scheduled_at", "id"),  # with the id: a page sorts by it
    Index("ix_runs_failed", "state", "ended_at", postgresql_where=text(FAILED), sqlite_where=text(FAILED)),
    Index("ix_runs_late", "id", postgresql_where=text("late"), sqlite_where=text("late = 1")),
)

run_tags = Table(
    "run_tags",
    metadata,
    Column("tag", Label, primary_key=True),
    Column("run_id", Uuid(), primary_key=True),
)

payloads = Table(
    "payloads",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("parameters", Document, nullable=False),
    Column("result", Document),
)

#: A lane holds runs that are equal but for their due time: one is blocked exactly if all are.
lanes = Table(
    "lanes",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("queue_id", ForeignKey("queues.id"), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("deployment_id", ForeignKey("deployments.id"), nullable=False),
    Column("require", Text, nullable=False),  # tags that the agent must have, sorted, joined by spaces
    Column(
        "need", Text, nullable=False, server_default=text("''")
    ),  # what it takes of the agent's capacity, see lanes.need_text
    Column(
        "limits", Text, nullable=False, server_default=text("''")
    ),  # ids of the limits it is under, sorted, joined by spaces
    Column("backfill_id", Serial, nullable=False),  # 0: none; its concurrency limits the lane
    Column("served_at", Time, nullable=False),  # deployments of one priority are served in turn
    UniqueConstraint(
        *("queue_id", "priority", "deployment_id", "require", "need", "limits", "backfill_id"),
        name="uq_lanes_key",
    ),
    Index(
        "ix_lanes_demanding",
        "queue_id",
        "require",
        "need",
        postgresql_where=text(DEMANDING),
        sqlite_where=text(DEMANDING),
    ),
)

#: How many runs are active at once, or start within a time, across deployments.
limits = Table(
    "limits",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("name", Label, nullable=False, unique=True),
    Column("tag", Label, index=True),  # NULL: deployments name it
    Column("max", Integer),
    Column("rate_count", Integer),
    Column("rate_seconds", Float),
    Column("strategy", String(16), nullable=False),
    Column("full_until", Time),  # when the rate allows the next start; NULL: it did all along
    Column("created_at", Time, nullable=False),
    **NEVER_AGAIN,
)

#: What ``lanes.limits`` says, for joins.
lane_limits = Table(
    "lane_limits",
    metadata,
    Column("lane_id", ForeignKey("lanes.id"), primary_key=True),
    Column("limit_id", ForeignKey("limits.id"), primary_key=True),
    Index("ix_lane_limits_limit_id_lane_id", "limit_id", "lane_id"),
)

#: Hot: the live attempts that count under each limit.
lease_limits = Table(
    "lease_limits",
    metadata,
    Column("limit_id", ForeignKey("limits.id"), primary_key=True),
    # Whatever ends a lease frees its places.
    Column("run_id", ForeignKey("leases.run_id", ondelete="CASCADE"), primary_key=True),
    Index("ix_lease_limits_run_id", "run_id"),
)

#: The last starts under each limit that has a rate, no more of them than the rate allows.
limit_starts = Table(
    "limit_starts",
    metadata,
    Column("limit_id", ForeignKey("limits.id"), primary_key=True),
    Column("at", Time, primary_key=True),
    Column("run_id", Uuid(), primary_key=True),
)

#: Who paused what, and why; that it is paused stands where claims look, but for the whole server's.
pauses = Table(
    "pauses",
    metadata,
    Column("kind", String(16), primary_key=True),  # deployment, schedule, queue, pool, agent or server
    Column("ref_id", Serial, primary_key=True, autoincrement=False),  # 0: the server
    Column("by", String(200), nullable=False),
    Column("reason", String(1000), nullable=False),
    Column("at", Time, nullable=False),
)

ready = Table(
    "ready",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("lane_id", ForeignKey("lanes.id")),  # NULL: no pool matches yet
    Column("due_at", Time, nullable=False, index=True),
    Column("late", Boolean(), nullable=False),  # it is marked, or never to be (a backfill)
    Column("avoid_agent_id", Serial),  # could not launch it; while another may, it is not asked again
    Index("ix_ready_lane_id_due_at_run_id", "lane_id", "due_at", "run_id"),
    Index("ix_ready_late_due_at", "late", "due_at"),
    Index("ix_ready_avoiding", "due_at", postgresql_where=text(AVOIDING), sqlite_where=text(AVOIDING)),
)

agents = Table(
    "agents",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("name", Label, nullable=False, unique=True),
    Column("identity", Uuid(), nullable=False),
    Column("session", Uuid(), nullable=False),
    Column("pools", Document, nullable=False),
    Column("queues", Document, nullable=False),
    Column("tags", Document, nullable=False),
    Column("limit", Integer, nullable=False),
    Column("host", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("first_seen_at", Time, nullable=False),
    Column("last_seen_at", Time, nullable=False),
    Column("draining", Boolean(), nullable=False, server_default=false()),
    Column("troubles", Document, nullable=False, server_default="[]"),
    Column("found_tags", Document, nullable=False, server_default="[]"),
    Column("capacity", Document, nullable=False, server_default="{}"),
    Column("paused", Boolean(), nullable=False, server_default=false()),
    Column("reaches", Document, nullable=False, server_default="{}"),  # pool -> where its work is
    Column("drain_session", Uuid()),  # the life of it that was told to drain; the next one is not
    **NEVER_AGAIN,
)

#: The right of one agent to one attempt, and all that is known of the attempt while it lives.
leases = Table(
    "leases",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("agent_id", ForeignKey("agents.id"), nullable=False, index=True),
    Column("session", Uuid(), nullable=False),
    Column("pool_id", ForeignKey("pools.id"), nullable=False, index=True),
    Column("queue_id", ForeignKey("queues.id"), nullable=False, index=True),
    Column("deployment_id", ForeignKey("deployments.id"), nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("backfill_id", Serial, index=True),
    Column("state", State, nullable=False),
    Column("seq", Integer, nullable=False),  # of the last report
    Column("due_at", Time),  # when its run was due; NULL: granted by an earlier version
    Column("granted_at", Time, nullable=False),
    Column("started_at", Time),
    Column("pid", Integer),
    Column("message", Text),
    Column("limited", Boolean(), nullable=False, server_default=false()),  # it has rows in lease_limits
    Column("cancelling", Boolean(), nullable=False),
    Column("superseded_by", Label),  # the limit for which it is stopped; NULL: a person wants it
    Column("lost", Boolean(), nullable=False),
    Column("note", Text),  # what the engine says that its launch waits for
    Column("memory", BigInteger),  # bytes that this attempt gets instead of what its deployment says
    Column("handed_over", Boolean(), nullable=False, server_default=false()),  # another agent had it before
    Column("commit", String(64)),  # that its source was fetched at
    Column("progress", Document),  # what the run itself says
    Column("result", Document),  # that the run itself gave, before its end
)

# What the engine was asked for, without secrets; only of attempts that an engine runs.
manifests = Table(
    "manifests",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("document", Document, nullable=False),
)
attempts = Table(
    "attempts",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("agent", Label, nullable=False),
    Column("state", State, nullable=False),
    Column("cause", String(32)),
    Column("message", Text),
    Column("claimed_at", Time, nullable=False),
    Column("started_at", Time),
    Column("ended_at", Time, nullable=False),
    Column("pid", Integer),
    Column("exit_code", Integer),
    Column("signal", String(32)),
    Column("max_rss_bytes", BigInteger),
    Column("cpu_seconds", Float),
    Column("log_size", BigInteger),
    Column("log_deleted", Boolean(), nullable=False, server_default=false()),
    Column("memory", BigInteger),  # as in leases
    Column("commit", String(64)),
    Column("progress", Document),
)

#: How far the journal of each attempt has come; none of attempts that have none.
journals = Table(
    "journals",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("offset", BigInteger, nullable=False),  # after the last whole line that was taken
    Column("flow", Text),  # the first one that it names
    Column("code", String(64)),  # version of that one's code
    Column("crash_hooks", Boolean(), nullable=False, server_default=false()),  # that one has some
)

#: Tasks and flows within a run, as the last line about each says. What is JSON goes in and out as it is.
task_runs = Table(
    "task_runs",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("parent", String(64)),
    Column("name", Text, nullable=False),
    Column("is_flow", Boolean(), nullable=False),
    Column("state", State, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),  # of the run
    Column("created_at", Time, nullable=False),
    Column("started_at", Time),
    Column("ended_at", Time),
    Column("upstream", Text),  # JSON: keys
    Column("error", Text),  # JSON: type, message, traceback
    Column("result", Text),  # JSON: what is kept of its value, and where
    Column("code", String(64)),
    Index("ix_task_runs_run_id_created_at_key", "run_id", "created_at", "key"),
)

#: What runs leave for people to look at; the last one of a key counts.
artifacts = Table(
    "artifacts",
    metadata,
    Column("run_id", Uuid(), primary_key=True),
    Column("key", Label, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("description", Text, nullable=False),
    Column("task", String(64)),
    Column("attempt", Integer, nullable=False),
    Column("at", Time, nullable=False),
    Column("data", Text, nullable=False),  # JSON
)

#: Partitioned by day of ``at`` on Postgres (the migration says how).
events = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("at", Time, nullable=False),
    Column("run_id", Uuid()),
    Column("deployment_id", Serial),
    Column("attempt", Integer),
    Column("kind", String(32), nullable=False),
    Column("actor", String(16), nullable=False),
    Column("data", Document),
    Index("ix_events_run_id_id", "run_id", "id"),
    Index(
        "ix_events_deployment_id_id",
        "deployment_id",
        "id",
        postgresql_where=text("run_id IS NULL"),
        sqlite_where=text("run_id IS NULL"),
    ),
)

#: Who may ask: people's keys, agents' credentials and enrolment tokens. Those of attempts are reckoned, not kept.
keys = Table(
    "keys",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", Label, nullable=False, index=True),
    Column(
        "hash", String(64), nullable=False, unique=True
    ),  # SHA-256 in hex; the token has 256 bits of chance
    Column("role", String(16)),  # of a person
    Column("pools", Document, nullable=False, server_default="[]"),  # of an agent or an enrolment
    Column("manage_pools", Boolean(), nullable=False, server_default=false()),
    Column("uses_left", Integer),  # of an enrolment
    Column("created_at", Time, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("expires_at", Time),
    Column("revoked_at", Time),
    Column("last_used_at", Time),
    Column("last_used_from", String(64)),
    Column("invitation", Label),  # of an agent: the name of the one by which it came
    **NEVER_AGAIN,
)

secrets = Table(
    "secrets",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("name", Label, nullable=False, unique=True),
    Column("version", Integer, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("deleted_at", Time),  # none of its values is given out any more; set again, it is as new
    **NEVER_AGAIN,
)

#: Values of secrets, encrypted. Those that were replaced stay while an attempt lives that may have been given them.
secret_values = Table(
    "secret_values",
    metadata,
    Column("secret_id", ForeignKey("secrets.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    Column("replaced_at", Time),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("at", Time, nullable=False, index=True),
    Column("who", String(200), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target", String(300), nullable=False),
    Column("status", Integer, nullable=False),
    Column("detail", Document),
    Index("ix_audit_who_id", "who", "id"),
)
