"""Names for the shell to complete, asked from the server; none if it does not answer at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shunter_work_pools.client import Client

#: Seconds that a person who pressed the tabulator is kept waiting.
PATIENCE = 1.0


def _names(incomplete: str, ask: Callable[[Client], list[str]]) -> list[str]:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.errors import ShunterError

    try:
        with Client(connect_timeout=PATIENCE, answer_timeout=PATIENCE) as client:
            return [name for name in ask(client) if name.startswith(incomplete)]
    except ShunterError:
        return []


def deployments(incomplete: str) -> list[str]:
    """Names of deployments."""

    from shunter_cli.connection import deployment_names
    from shunter_cli.naming import DEPLOYMENT

    if not incomplete:
        return _names("", deployment_names)
    return _names(incomplete, lambda client: DEPLOYMENT.beginning(client, incomplete))


def pools(incomplete: str) -> list[str]:
    """Names of pools."""
    return _names(incomplete, lambda client: [pool.name for pool in client.list_pools().pools])


def limits(incomplete: str) -> list[str]:
    """Names of limits."""
    return _names(incomplete, lambda client: [limit.name for limit in client.list_limits().limits])


def secrets(incomplete: str) -> list[str]:
    """Names of secrets."""
    return _names(incomplete, lambda client: [secret.name for secret in client.list_secrets().secrets])


def agents(incomplete: str) -> list[str]:
    """Names of agents."""
    return _names(incomplete, lambda client: [agent.name for agent in client.list_agents().agents])


def runs(incomplete: str) -> list[str]:
    """Ids of the latest runs."""
    return _names(incomplete, lambda client: [str(run.id) for run in client.list_runs(limit=50).runs])


def queues(ctx: Any, incomplete: str) -> list[str]:
    """Names of the queues of the pool that was typed before."""
    pool = ctx.params.get("pool") or ""
    return _names(incomplete, lambda client: [queue.name for queue in client.get_pool(pool).queues])


def schedules(ctx: Any, incomplete: str) -> list[str]:
    """Names of the schedules of the deployment that was typed before."""
    deployment = ctx.params.get("deployment") or ""
    return _names(
        incomplete, lambda client: [one.name for one in client.get_deployment(deployment).schedules]
    )
