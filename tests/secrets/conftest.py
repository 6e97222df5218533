"""A server on each store, over real HTTP; and a namespace of a cluster."""

from tests.api.conftest import kind, migrated_postgres, migrated_sqlite, plain, server
from tests.launchers.conftest import jobs_of_tests

__all__ = ["jobs_of_tests", "kind", "migrated_postgres", "migrated_sqlite", "plain", "server"]
