"""The pools that an agent makes for itself: there, of their type, with the template and the match tags they are to have.

Several agents may be about it at the same moment, and each start looks anew: only what differs is written. What the
server refuses for good ends the agent, in words for who can change that; a server that is away is for the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shunter_agents.link import Server
from shunter_work_pools.contracts.errors import BadRequest, Conflict, Forbidden, InvalidInput, NotFound
from shunter_work_pools.contracts.pools import Pool, PoolPatch, PoolSpec
from shunter_work_pools.contracts.secret_variables import SECRETS, hidden
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

_ALLOW = (
    "Who administers the server allows it: `managePools: true` and the pool's name among `pools` in the entry of "
    "server.trust for the agent's service account, or `shunter agent invite --manage-pools` for agents that join."
)


@dataclass(frozen=True)
class OwnPools:
    """What becomes of the pools that an agent serves.

    Attributes:
        kind: the type that they have, and are made with.
        template: theirs; None: as it is.
        match: their match tags; None: as they are.
    """

    kind: str
    template: Mapping[str, Any] | None = None
    match: list[str] | None = None

    async def made(self, server: Server, name: str) -> Pool:
        """A pool, as it is to be.

        Raises:
            InvalidInput: it cannot be: what is in the way, and who can change that.
            ShunterError: the server is away, or refuses the agent as such.
        """
        try:
            try:
                pool = await server.get_pool(name)
            except NotFound:
                try:
                    return await self._make(server, name)
                except Conflict:  # another agent was faster
                    pool = await server.get_pool(name)
            return await self._change(server, pool)
        except BadRequest as exc:
            raise InvalidInput(f"the server refuses the pool {name!r}: {exc.detail}", _remedies(exc)) from exc

    async def _make(self, server: Server, name: str) -> Pool:
        spec = {"name": name, "type": self.kind, "template": self.template or {}, "match": self.match or []}
        try:
            pool = await server.create_pool(PoolSpec.model_validate(spec))
        except Forbidden as exc:
            raise InvalidInput(
                f"there is no pool {name!r}, and this agent may not make it: {exc.detail}",
                f"{_ALLOW} Or make it: `shunter pool create {name} --type {self.kind}`.",
            ) from exc
        log.info("made the pool", pool=name, type=self.kind)
        return pool

    async def _change(self, server: Server, pool: Pool) -> Pool:
        if pool.type != self.kind:
            raise InvalidInput(
                f"pool {pool.name!r} is there, and of type {pool.type}, not {self.kind}",
                f"Say --create-pool {pool.type}, or serve a pool of another name.",
            )
        changes = self._changes(pool)
        if not changes:
            return pool
        try:
            changed = await server.update_pool(pool.name, PoolPatch.model_validate(changes))
        except Forbidden as exc:
            raise InvalidInput(
                f"pool {pool.name!r} has another {' and another '.join(sorted(changes))} than this agent is to give it, "
                f"and the agent may not change it: {exc.detail}",
                f"{_ALLOW} Or start it without --create-pool.",
            ) from exc
        log.info("changed the pool", pool=pool.name, what=sorted(changes))
        return changed

    def _changes(self, pool: Pool) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if self.template is not None and not _same(dict(self.template), pool.template):
            changes["template"] = dict(self.template)
        if self.match is not None and set(self.match) != set(pool.match):
            changes["match"] = self.match
        return changes


def _same(wanted: dict[str, Any], shown: Mapping[str, Any]) -> bool:
    """Whether a pool has a template; secret values are not shown, so one that has some is never known to be the same."""
    secret = wanted.get(SECRETS)
    tells = isinstance(secret, dict) and any(value is not None for value in secret.values())
    return not tells and hidden(wanted) == shown


def _remedies(exc: BadRequest) -> str:
    """What to do about each fault of a template, as far as the server says so; else about the first."""
    told = [fault.get("remedy", "") for fault in exc.extra.get("faults", []) if isinstance(fault, dict)]
    return " ".join(dict.fromkeys(filter(None, told))) or exc.remedy


async def served(server: Server, name: str, own: OwnPools | None) -> Pool:
    """A pool that is to be served.

    Args:
        own: as what it is made, if the agent makes its pools.

    Raises:
        InvalidInput: it cannot be served: what is in the way, and who can change that.
        ShunterError: the server is away, or refuses the agent as such.
    """
    try:
        return await (server.get_pool(name) if own is None else own.made(server, name))
    except Forbidden as exc:
        raise InvalidInput(
            f"this agent may not serve the pool {name!r}: {exc.detail}",
            "Who administers the server puts the pool among `pools` in the entry of server.trust for the agent's "
            "service account, or invites the agent for it.",
        ) from exc
