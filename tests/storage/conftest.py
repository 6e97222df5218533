"""Fixtures of the stores."""

from tests.storage.stores import clock, kind, migrated_postgres, migrated_sqlite, store

__all__ = ["clock", "kind", "migrated_postgres", "migrated_sqlite", "store"]
