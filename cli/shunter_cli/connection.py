"""The client, as commands use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shunter_work_pools.client import Client


def connect() -> Client:
    """A client of the server that SHUNTER_API_URL names; to be closed, or used in ``with``."""
    from shunter_work_pools.client import Client

    return Client()


def deployment_names(client: Client) -> list[str]:
    """Names of deployments, as many as are worth comparing a mistyped one with."""
    return [deployment.name for deployment in client.list_deployments(limit=200).deployments]


def pool_names(client: Client) -> list[str]:
    """Names of all pools."""
    return [pool.name for pool in client.list_pools().pools]
