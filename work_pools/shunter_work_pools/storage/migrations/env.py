"""Alembic's environment: it is given a connection and never makes one."""

from __future__ import annotations

from alembic import context

from shunter_work_pools.storage.schema import metadata

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # Two servers that start at once must not both migrate; held until the commit, or the second would
    # not see yet what the first made.
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5346726174)")
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
