"""Who may ask, in words; without pydantic, for the command line."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What somebody who asks is.

    A ``person`` has a role; an ``agent`` serves pools; an ``enrolment`` token makes an agent out of who has it; an
    ``attempt`` is what an agent runs.
    """

    PERSON = "person"
    AGENT = "agent"
    ENROLMENT = "enrolment"
    ATTEMPT = "attempt"


class Role(StrEnum):
    """What a person may do; each may do what those before it may.

    A ``viewer`` reads (no secrets, no keys, no audit). An ``operator`` starts, cancels and retries runs, pauses and
    drains. A ``deployer`` changes deployments, schedules and secrets. An ``admin`` changes pools, queues and
    limits, invites agents, gives and revokes keys, and reads the audit.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    DEPLOYER = "deployer"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether this role may do what ``other`` may."""
        ladder = list(Role)
        return ladder.index(self) >= ladder.index(other)
