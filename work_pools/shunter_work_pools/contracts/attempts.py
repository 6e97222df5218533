"""What a run asks and tells of itself, by the token of its attempt."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from shunter_work_pools.contracts.base import Contract, Instant, Json


class Progress(Contract):
    """How far an attempt says it is.

    Attributes:
        percent: 0 to 100.
        note: one sentence.
    """

    percent: Annotated[float, Field(ge=0, le=100)] | None = None
    note: Annotated[str, StringConstraints(max_length=1000)] = ""


class ToldProgress(Progress):
    """The same, and when it was said."""

    at: Instant


class AttemptResult(Contract):
    """The result of a run, given by itself before its end; the last one counts."""

    value: Json


class OwnAttempt(Contract):
    """What an attempt is told of itself.

    Attributes:
        stopping: somebody wants it to end.
    """

    run: UUID
    attempt: int
    deployment: str
    revision: int
    state: str
    stopping: bool = False
    progress: ToldProgress | None = None
