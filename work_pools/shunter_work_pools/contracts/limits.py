"""Limits: how many runs are active at once, or start within a time, across deployments."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shunter_work_pools.contracts.base import Contract, Instant, Name, Tag

#: What becomes of a run that is due while a limit is full: it waits; it is ended as skipped; or the oldest
#: active run is stopped for it.
Strategy = Literal["enqueue", "cancel_new", "cancel_running"]
#: Live attempts at once, and starts within how many seconds, that a limit can allow at the most.
PLACES, RATE_COUNT, RATE_SECONDS = 1_000_000, 10_000, 31 * 86_400.0
#: Of a shorter time nobody could tell the difference.
RATE_SECONDS_LEAST = 0.001
Places = Annotated[int, Field(ge=0, le=PLACES)]


class Rate(Contract):
    """At most ``count`` starts within any ``seconds``."""

    count: int = Field(ge=1, le=RATE_COUNT)
    seconds: float = Field(ge=RATE_SECONDS_LEAST, le=RATE_SECONDS)


class LimitSpec(Contract):
    """A request to make a limit.

    Attributes:
        tag: it holds for all runs that carry this tag; None: for the deployments that name it.
        max: live attempts at once; None: no limit on that.
        rate: starts within a time; None: no limit on that.
        strategy: what becomes of a run that is due while ``max`` is reached. (One that only the rate holds
            back always waits.)
    """

    name: Name
    tag: Tag | None = None
    max: Places | None = None
    rate: Rate | None = None
    strategy: Strategy = "enqueue"

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if fault := unfit(self.max, self.rate, self.strategy):
            raise ValueError(fault)
        return self


def unfit(most: int | None, rate: Rate | None, strategy: str) -> str:
    """Why these cannot be a limit together; empty if they can."""
    if most is None and rate is None:
        return "a limit needs max, rate or both"
    if strategy != "enqueue" and not most:
        return f"{strategy} needs a max of at least 1"
    return ""


class LimitPatch(Contract):
    """Changes of a limit; only the fields that are set are changed. Its name and tag stay."""

    max: Places | None = None
    rate: Rate | None = None
    strategy: Strategy | None = None


class Limit(Contract):
    """A limit as the server keeps it.

    Attributes:
        active: live attempts that count.
        waiting: waiting runs that it holds for, due or not.
        full_until: when the rate allows the next start; None: now.
        deployments: names of those that name it, up to 100.
    """

    name: str
    tag: str | None = None
    max: int | None = None
    rate: Rate | None = None
    strategy: Strategy = "enqueue"
    created_at: Instant
    active: int = 0
    waiting: int = 0
    full_until: Instant | None = None
    deployments: list[str] = []


class LimitList(Contract):
    """All limits, by name."""

    limits: list[Limit]
