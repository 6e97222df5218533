"""Who did what, when, and from where."""

from __future__ import annotations

from shunter_work_pools.contracts.base import Contract, Instant, Json


class AuditEntry(Contract):
    """One thing that somebody did, or was refused.

    Attributes:
        who: name of the key, agent or attempt; empty: nobody who is known.
        kind: person, agent, enrolment or attempt.
        address: from where.
        action: name of the operation, e.g. ``apply_deployment``.
        target: what it was done to, e.g. ``deployments/nightly``.
        status: of the answer (RFC 9110).
        detail: what else a person should know; no secrets.
    """

    id: int
    at: Instant
    who: str
    kind: str
    address: str
    action: str
    target: str
    status: int
    detail: Json = None


class AuditPage(Contract):
    """One page, newest first; ``next`` is the cursor of the next page."""

    entries: list[AuditEntry]
    next: str | None = None
