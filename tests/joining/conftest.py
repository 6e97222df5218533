"""A server on each store, as the tests of the API have it."""

from __future__ import annotations

from tests.api.conftest import kind, migrated_postgres, migrated_sqlite, plain, server

__all__ = ["kind", "migrated_postgres", "migrated_sqlite", "plain", "server"]
