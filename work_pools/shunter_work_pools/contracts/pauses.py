"""Pauses: what is held on purpose, by whom and why."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from shunter_work_pools.contracts.base import Contract, Instant

#: Who pauses: until people have identities, what they say of themselves.
Who = Annotated[str, StringConstraints(max_length=200)]
Why = Annotated[str, StringConstraints(max_length=1000)]


class Pause(Contract):
    """Who paused something, why, and when.

    Attributes:
        by: empty: it is not known.
        reason: empty: none was given.
    """

    by: str = ""
    reason: str = ""
    at: Instant


class PausePatch(Contract):
    """Pauses or resumes; what is paused already takes a new reason.

    Attributes:
        paused: None: as it is.
        reason, by: kept with a pause, and told of in explanations.
    """

    paused: bool | None = None
    reason: Why = ""
    by: Who = ""
