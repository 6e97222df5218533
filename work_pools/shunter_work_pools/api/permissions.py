"""Who may do what: one table of all operations, and the route that goes by it.

An operation is the function of a route. One that is not in the table cannot be made a route of the server, and a
route that does not go by the table answers nobody: see :class:`GuardedRoute` and
:class:`~shunter_work_pools.api.boundary.Boundary`.

People have roles, each may do what those before it may. Agents are held to their own name here, to their pools and
their leases where these are known. Tokens of attempts and enrolments do what they are for and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from shunter_work_pools.contracts.errors import Forbidden, Refused
from shunter_work_pools.contracts.identities import Kind, Role
from shunter_work_pools.identities import LOCAL, Identity
from shunter_work_pools.queue.audit import Deed
from shunter_work_pools.storage.store import BEHALF


def address_of(scope: Any) -> str:
    """From where a request comes, as far as that is known."""
    client = scope.get("client")
    return str(client[0]) if client else ""


#: What a route's path says.
Path = Mapping[str, str]


def own_name(agent: Identity, path: Path) -> str | None:
    """Only as itself."""
    if path["name"] == agent.name:
        return None
    return f"agent {agent.name!r} cannot act as agent {path['name']!r}"


def own_pool(agent: Identity, path: Path) -> str | None:
    """Only of a pool that it serves."""
    if path["name"] in agent.pools:
        return None
    return f"agent {agent.name!r} does not serve the pool {path['name']!r}"


def managed_pool(agent: Identity, path: Path) -> str | None:
    """Only pools that it serves, if it may manage those; what is not in the path the operation sees to."""
    if not agent.manage_pools:
        return f"agent {agent.name!r} may not change pools"
    return own_pool(agent, path) if "name" in path else None


def anything(agent: Identity, path: Path) -> str | None:
    """Any agent."""
    return None


@dataclass(frozen=True)
class Rule:
    """Who may do an operation.

    Attributes:
        role: the least that a person must have; None: no person may, whatever its role.
        agent: why an agent may not, by the path (None: it may); no such function: none may.
        enrolment, attempt: whether these may.
        open: nobody is asked who he is.
        audited: it is written down who did it.
    """

    role: Role | None
    agent: Callable[[Identity, Path], str | None] | None = None
    enrolment: bool = False
    attempt: bool = False
    open: bool = False
    audited: bool = False

    def refusal(self, identity: Identity, path: Path) -> str | None:
        """Why somebody may not; None: he may."""
        match identity.kind:
            case Kind.PERSON:
                if self.role is None:
                    return "this is not for people"
                assert identity.role is not None
                if identity.role.includes(self.role):
                    return None
                return f"it takes the role {self.role.value}, and {identity.name!r} is {identity.role.value}"
            case Kind.AGENT:
                return "this is not for agents" if self.agent is None else self.agent(identity, path)
            case Kind.ENROLMENT:
                return None if self.enrolment else "an invitation is good for joining only"
            case Kind.ATTEMPT:
                return (
                    None if self.attempt else "the token of an attempt is good for what concerns itself only"
                )


OPEN = Rule(None, open=True)
READ = Rule(Role.VIEWER)
OPERATE = Rule(Role.OPERATOR, audited=True)
DEPLOY = Rule(Role.DEPLOYER, audited=True)
ADMINISTER = Rule(Role.ADMIN, audited=True)
#: The protocol of agents. An admin may: that is who has the token of the server's home, as agents beside it do.
SERVE = Rule(Role.ADMIN, agent=own_name)
OF_ATTEMPT = Rule(None, attempt=True)

#: Operation -> who may.
RULES: Mapping[str, Rule] = {
    # Health says no more than that.
    "healthz": OPEN,
    "readyz": OPEN,
    "openapi": Rule(Role.VIEWER, agent=anything, enrolment=True, attempt=True),
    "whoami": Rule(Role.VIEWER, agent=anything, enrolment=True, attempt=True),
    "metrics": READ,
    "server": Rule(Role.VIEWER, agent=anything),
    "patch_server": ADMINISTER,
    "status_": READ,
    # Runs.
    "create_run": OPERATE,
    "create_runs": OPERATE,
    "list_runs": READ,
    "export_runs": READ,
    "get_run": READ,
    "list_events": READ,
    "get_manifest": READ,
    "read_logs": READ,
    "explain_run": READ,
    "list_tasks": READ,
    "get_graph": READ,
    "list_artifacts": READ,
    "get_artifact": READ,
    "patch_run": OPERATE,
    "cancel_run": OPERATE,
    "skip_run": OPERATE,
    "retry_run": OPERATE,
    "delete_run": DEPLOY,
    # Deployments and schedules.
    "list_deployments": READ,
    "get_deployment": READ,
    "route_deployment": READ,
    "list_revisions": READ,
    "list_deployment_events": READ,
    "apply_deployments": DEPLOY,
    "apply_deployment": DEPLOY,
    "rollback_deployment": DEPLOY,
    "delete_deployment": DEPLOY,
    "patch_deployment": OPERATE,
    "list_schedules": READ,
    "preview": READ,
    "preview_schedule": READ,
    "patch_schedule": OPERATE,
    "backfill": OPERATE,
    "flush_late": OPERATE,
    # Pools, queues, limits.
    "list_pools": READ,
    "get_pool": replace(READ, agent=own_pool),
    "create_pool": replace(ADMINISTER, agent=managed_pool),
    "patch_pool": replace(ADMINISTER, agent=managed_pool),
    "delete_pool": ADMINISTER,
    # The server's own command, and nothing that whoever asks could say.
    "check_pool": replace(OPERATE, agent=own_pool),
    "get_pool_check": replace(READ, agent=own_pool),
    "create_queue": ADMINISTER,
    "patch_queue": ADMINISTER,
    "delete_queue": ADMINISTER,
    "list_limits": READ,
    "get_limit": READ,
    "create_limit": ADMINISTER,
    "patch_limit": ADMINISTER,
    "delete_limit": ADMINISTER,
    # A run, of itself.
    "get_attempt": OF_ATTEMPT,
    "get_own_secrets": OF_ATTEMPT,
    "tell_progress": OF_ATTEMPT,
    "put_result": OF_ATTEMPT,
    "put_journal": OF_ATTEMPT,
    "put_task_result": OF_ATTEMPT,
    "get_task_result": OF_ATTEMPT,
    "get_own_tasks": OF_ATTEMPT,
    # Who asks, and who did what.
    "create_key": ADMINISTER,
    "list_keys": Rule(Role.ADMIN),
    "revoke_key": ADMINISTER,
    "list_audit": Rule(Role.ADMIN),
    # Secrets, of which nobody is told more than the names.
    "list_secrets": Rule(Role.DEPLOYER),
    "get_secret": Rule(Role.DEPLOYER),
    "set_secret": DEPLOY,
    "delete_secret": DEPLOY,
    # Agents, for people.
    "list_agents": READ,
    "get_agent": replace(READ, agent=own_name),
    "patch_agent": OPERATE,
    "drain_agent": OPERATE,
    "remove_agent": ADMINISTER,
    # Agents that come, and people who sign in.
    "invite_agents": ADMINISTER,
    "join": Rule(None, enrolment=True, audited=True),
    "renew_credential": Rule(None, agent=own_name),
    "sign_in_info": OPEN,
    "sign_in": OPEN,  # it says itself who that was, once it knows
    # Agents, as they are.
    "sync_agent": SERVE,
    "take_reports": SERVE,
    "release_attempts": SERVE,
    "leave_attempts": SERVE,
    "take_logs": SERVE,
    "take_journals": SERVE,
    "take_task_results": SERVE,
    "give_secrets": SERVE,
}


class GuardedRoute(APIRoute):
    """A route that goes by the table.

    Raises:
        LookupError: its operation is not in there.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        super().__init__(path, endpoint, **more)
        if self.name not in RULES:
            raise LookupError(f"the operation {self.name!r} ({path}) has no rule in {__name__}.RULES")
        self.rule = RULES[self.name]

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """See Starlette: called for what matches the path; a method that there is not is refused in there."""
        scope["operation"] = self
        if not self.rule.open and scope["method"] in (self.methods or ()):
            self._permit(scope)
        scope["permitted"] = True
        await super().handle(scope, receive, send)

    def _permit(self, scope: Any) -> None:
        identity: Identity = scope["admission"].identity
        refusal = self.rule.refusal(identity, scope["path_params"])
        if refusal is not None:
            raise Forbidden(f"{self.name}: {refusal}", "Ask an admin, or use another key.")
        if self.rule.audited:
            BEHALF.set(self._deed(identity, scope, self.status_code or 200))

    def note(self, scope: Any, refused: Refused) -> None:
        """Somebody who is known was refused what nobody but others may do, by the table or by what the operation knows."""
        if not self.rule.open:
            deed = self._deed(scope["admission"].identity, scope, refused.status)
            deed.detail["reason"] = refused.detail
            scope["app"].state.engine.refusals.note(deed)

    def _deed(self, identity: Identity, scope: Any, status: int) -> Deed:
        # The path up to the last name in it: what follows says what is done.
        what_is_done = self.path_format.rpartition("}")[2] if "}" in self.path_format else ""
        target = scope["path"].removeprefix("/api/v1/").removesuffix(what_is_done)
        name = identity.name if identity.kind is not Kind.PERSON or identity.name != LOCAL else ""
        address = address_of(scope)
        return Deed(identity.name, identity.kind.value, address, self.name, target, status, name)


def unguarded(routes: Iterable[BaseRoute]) -> list[str]:
    """Routes that do not go by the table, routers that are included looked through."""
    found = []
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found += unguarded(inner.routes)
        elif not isinstance(route, GuardedRoute):
            found.append(str(getattr(route, "path", route)))
    return found
