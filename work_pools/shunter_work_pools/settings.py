"""Settings of the server that the queue and its loops go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shunter_work_pools.contracts.deployments import Keep


@dataclass(frozen=True)
class Settings:
    """Times in seconds.

    Attributes:
        late_after: a run that still waits so long after it was due is late.
        lost_after: an agent silent for so long is lost, and so are its runs.
        lease_for: an exclusive run is ended by its agent so long after it last reached the server.
        give_up_after: after so long ``on_lost`` of a run's deployment acts.
        reap_every: how often late and lost are looked for; with what a look takes, less than a second.
        heartbeat_every: heartbeats of all agents are written together so often.
        credential_for: so long the credential of an agent that joined holds.
        retain_every: how often what need not be kept is looked for.
        rate_limit: requests a second that a key may send.
        log_limit: bytes of an attempt's output that are kept.
        audit_for: how long entries of the audit are kept; None: for ever.
        keep: what is kept of runs that have ended, where a deployment does not say; None: everything.
    """

    late_after: float = 15.0
    lost_after: float = 30.0
    lease_for: float = 240.0
    give_up_after: float = 300.0
    reap_every: float = 0.9
    heartbeat_every: float = 1.0
    credential_for: float = 30 * 86_400.0
    retain_every: float = 60.0
    audit_for: float | None = None
    rate_limit: float | None = None
    log_limit: int | None = None
    keep: Keep = field(default_factory=Keep)


def settings_of(values: Mapping[str, Any]) -> Settings:
    """What the configuration says, see ``contracts.settings``."""
    kept = {name.removeprefix("keep."): value for name, value in values.items() if name.startswith("keep.")}
    audit_for = kept.pop("audit_for")
    return Settings(
        late_after=values["server.late_after"],
        lost_after=values["server.lost_after"],
        lease_for=values["server.lease_for"],
        give_up_after=values["server.give_up_after"],
        audit_for=audit_for,
        credential_for=values["server.credential_for"],
        rate_limit=values["server.rate_limit"],
        log_limit=values["server.log_limit"],
        retain_every=values["server.retain_every"],
        keep=Keep(**kept),
    )
