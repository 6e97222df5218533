"""Work that agents hand over to each other, what a launch waits for, and what engines were asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # Defaults stay where a server of the version before, on the same Postgres, goes on writing without them.
    op.add_column("agents", sa.Column("reaches", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("leases", sa.Column("note", sa.Text()))
    op.add_column("leases", sa.Column("memory", sa.BigInteger()))
    op.add_column("leases", sa.Column("handed_over", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("attempts", sa.Column("memory", sa.BigInteger()))
    op.create_table(
        "manifests",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "attempt", name="pk_manifests"),
    )
