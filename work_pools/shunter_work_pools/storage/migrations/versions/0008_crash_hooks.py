"""Whether the flow of an attempt has hooks for a crash."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # The default stays where a server of the version before, on the same Postgres, goes on writing without it.
    op.add_column(
        "journals", sa.Column("crash_hooks", sa.Boolean(), nullable=False, server_default=sa.false())
    )
