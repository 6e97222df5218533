"""What agents say of their health, who was told to drain, and whom a run avoids."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

AVOIDING = sa.text("avoid_agent_id IS NOT NULL")
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("ready", sa.Column("avoid_agent_id", SERIAL))
    op.create_index(
        "ix_ready_avoiding", "ready", ["due_at"], postgresql_where=AVOIDING, sqlite_where=AVOIDING
    )
    # The defaults stay: a server of the version before, on the same Postgres, goes on writing agents without them.
    op.add_column("agents", sa.Column("draining", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("agents", sa.Column("troubles", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("agents", sa.Column("drain_session", sa.Uuid()))
