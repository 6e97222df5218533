"""A server on each store, over real HTTP."""

from tests.api.conftest import kind, migrated_postgres, migrated_sqlite, plain, server

__all__ = ["kind", "migrated_postgres", "migrated_sqlite", "plain", "server"]
