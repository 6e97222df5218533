"""A queue on each store; when a test is over its books must agree."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.queue.books import audit, exceeded
from tests.queue.world import World
from tests.storage.stores import AnyStore, Clock, clock, kind, migrated_postgres, migrated_sqlite, store

__all__ = ["clock", "kind", "migrated_postgres", "migrated_sqlite", "store"]


@pytest.fixture
async def world(store: AnyStore, clock: Clock) -> AsyncIterator[World]:
    """An empty queue."""
    made = World(store, clock)
    yield made
    await made.store.read(audit)
    assert await made.store.read(exceeded) <= made.lowered
