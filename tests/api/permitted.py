"""Who may do what, by hand: nothing of it is taken from the server's code.

A line is an operation and who is let through to it; everybody else is refused with 403 (or 401, who is nobody).
"""

from __future__ import annotations

#: The people, each with what those before may do.
VIEWERS = frozenset({"viewer", "operator", "deployer", "admin"})
OPERATORS = frozenset({"operator", "deployer", "admin"})
DEPLOYERS = frozenset({"deployer", "admin"})
ADMINS = frozenset({"admin"})
#: Agents: one at its own name and of the pool, one of another pool, one of the pool that may manage it.
OWN, OTHER = "agent", "agent of another pool"
MANAGER = "agent that manages the pool"
RUN, INVITED = "attempt", "enrolment"
EVERYBODY = VIEWERS | {OWN, OTHER, MANAGER, RUN, INVITED}

#: These are open to who has no token at all.
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/api/v1/sign-in"), ("POST", "/api/v1/sign-in")}

#: In paths, ``a1`` is the agent ``OWN``, ``main`` its pool and that of ``MANAGER``.
TABLE: dict[tuple[str, str], frozenset[str]] = {
    ("GET", "/api/v1/whoami"): EVERYBODY,
    ("POST", "/api/v1/keys"): ADMINS,
    ("GET", "/api/v1/keys"): ADMINS,
    ("DELETE", "/api/v1/keys/{kind}/{name}"): ADMINS,
    ("GET", "/api/v1/audit"): ADMINS,
    ("POST", "/api/v1/invitations"): ADMINS,
    ("POST", "/api/v1/join"): frozenset({INVITED}),
    ("GET", "/api/v1/attempt"): frozenset({RUN}),
    ("GET", "/api/v1/attempt/secrets"): frozenset({RUN}),
    ("POST", "/api/v1/attempt/progress"): frozenset({RUN}),
    ("PUT", "/api/v1/attempt/result"): frozenset({RUN}),
    ("PUT", "/api/v1/attempt/journal"): frozenset({RUN}),
    ("PUT", "/api/v1/attempt/results/{name}"): frozenset({RUN}),
    ("GET", "/api/v1/attempt/results/{name}"): frozenset({RUN}),
    ("GET", "/api/v1/attempt/tasks"): frozenset({RUN}),
    ("GET", "/metrics"): VIEWERS,
    ("GET", "/api/v1/server"): VIEWERS | {OWN, OTHER, MANAGER},
    ("PATCH", "/api/v1/server"): ADMINS,
    ("GET", "/api/v1/status"): VIEWERS,
    ("POST", "/api/v1/runs"): OPERATORS,
    ("POST", "/api/v1/runs/batch"): OPERATORS,
    ("GET", "/api/v1/runs"): VIEWERS,
    ("GET", "/api/v1/runs/export"): VIEWERS,
    ("GET", "/api/v1/runs/{run}"): VIEWERS,
    ("PATCH", "/api/v1/runs/{run}"): OPERATORS,
    ("DELETE", "/api/v1/runs/{run}"): DEPLOYERS,
    ("GET", "/api/v1/runs/{run}/events"): VIEWERS,
    ("GET", "/api/v1/runs/{run}/manifest"): VIEWERS,
    ("GET", "/api/v1/runs/{run}/logs"): VIEWERS,
    ("GET", "/api/v1/runs/{run}/explain"): VIEWERS,
    ("GET", "/api/v1/runs/{run}/tasks"): VIEWERS,
    ("GET", "/api/v1/runs/{run}/graph"): VIEWERS,
    ("GET", "/api/v1/runs/{run}/artifacts"): VIEWERS,
    ("GET", "/api/v1/runs/{run}/artifacts/{key}"): VIEWERS,
    ("POST", "/api/v1/runs/{run}/cancel"): OPERATORS,
    ("POST", "/api/v1/runs/{run}/skip"): OPERATORS,
    ("POST", "/api/v1/runs/{run}/retry"): OPERATORS,
    ("GET", "/api/v1/deployments"): VIEWERS,
    ("POST", "/api/v1/deployments"): DEPLOYERS,
    ("GET", "/api/v1/deployments/{name}"): VIEWERS,
    ("PUT", "/api/v1/deployments/{name}"): DEPLOYERS,
    ("PATCH", "/api/v1/deployments/{name}"): OPERATORS,
    ("DELETE", "/api/v1/deployments/{name}"): DEPLOYERS,
    ("POST", "/api/v1/deployments/{name}/rollback"): DEPLOYERS,
    ("GET", "/api/v1/deployments/{name}/route"): VIEWERS,
    ("GET", "/api/v1/deployments/{name}/revisions"): VIEWERS,
    ("GET", "/api/v1/deployments/{name}/events"): VIEWERS,
    ("POST", "/api/v1/deployments/{name}/backfill"): OPERATORS,
    ("POST", "/api/v1/deployments/{name}/flush-late"): OPERATORS,
    ("GET", "/api/v1/schedules"): VIEWERS,
    ("POST", "/api/v1/schedules/preview"): VIEWERS,
    ("GET", "/api/v1/deployments/{name}/schedules/{schedule}/preview"): VIEWERS,
    ("PATCH", "/api/v1/deployments/{name}/schedules/{schedule}"): OPERATORS,
    ("GET", "/api/v1/pools"): VIEWERS,
    ("POST", "/api/v1/pools"): ADMINS | {MANAGER},
    ("GET", "/api/v1/pools/{name}"): VIEWERS | {OWN, MANAGER},
    ("PATCH", "/api/v1/pools/{name}"): ADMINS | {MANAGER},
    ("DELETE", "/api/v1/pools/{name}"): ADMINS,
    ("POST", "/api/v1/pools/{name}/checks"): OPERATORS | {OWN, MANAGER},
    ("GET", "/api/v1/pools/{name}/checks/{run}"): VIEWERS | {OWN, MANAGER},
    ("POST", "/api/v1/pools/{name}/queues"): ADMINS,
    ("PATCH", "/api/v1/pools/{name}/queues/{queue}"): ADMINS,
    ("DELETE", "/api/v1/pools/{name}/queues/{queue}"): ADMINS,
    ("GET", "/api/v1/limits"): VIEWERS,
    ("POST", "/api/v1/limits"): ADMINS,
    ("GET", "/api/v1/limits/{name}"): VIEWERS,
    ("PATCH", "/api/v1/limits/{name}"): ADMINS,
    ("DELETE", "/api/v1/limits/{name}"): ADMINS,
    ("GET", "/api/v1/secrets"): DEPLOYERS,
    ("GET", "/api/v1/secrets/{name}"): DEPLOYERS,
    ("PUT", "/api/v1/secrets/{name}"): DEPLOYERS,
    ("DELETE", "/api/v1/secrets/{name}"): DEPLOYERS,
    ("GET", "/api/v1/agents"): VIEWERS,
    ("GET", "/api/v1/agents/{name}"): VIEWERS | {OWN},
    ("PATCH", "/api/v1/agents/{name}"): OPERATORS,
    ("DELETE", "/api/v1/agents/{name}"): ADMINS,
    ("POST", "/api/v1/agents/{name}/drain"): OPERATORS,
    ("POST", "/api/v1/agents/{name}/sync"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/reports"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/release"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/leave"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/logs"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/journals"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/results/{run}/{attempt}"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/secrets"): ADMINS | {OWN},
    ("POST", "/api/v1/agents/{name}/credential"): frozenset({OWN}),
}
