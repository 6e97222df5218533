"""A server on each store, as the tests of the API have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.conftest import kind, migrated_postgres, migrated_sqlite, plain, server


@pytest.fixture(scope="session")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of this test run keep their compiled modules."""
    return tmp_path_factory.mktemp("modules")


__all__ = ["kind", "migrated_postgres", "migrated_sqlite", "plain", "server"]
