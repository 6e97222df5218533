"""The task that renews the agent's credential before it expires. See ``credential`` for the steps."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shunter_agents.credential import OwnCredential, hash_of
from shunter_agents.killpoints import reached
from shunter_agents.link import Backoff, Link, Trouble, judge, told, whole
from shunter_work_pools.contracts.identities import Credential, CredentialRequest
from shunter_work_pools.daemon_log import get_logger

log = get_logger()

#: Seconds after which the wall clock is looked at again: it goes on while the machine is suspended.
LOOK_EVERY = 600.0
#: Seconds until what will hardly pass by itself is tried again.
LATER = 30.0


class Renewing(Protocol):
    """What is needed of the client."""

    async def renew_credential(self, name: str, request: CredentialRequest) -> Credential: ...


async def renew(server: Renewing, own: OwnCredential, link: Link) -> None:
    """Renew the credential whenever it is due, for ever. What fails is tried again; until then the old one holds."""
    backoff = Backoff()
    while True:
        due_in = own.due_in()
        if due_in > 0:
            backoff.reset()
            await asyncio.sleep(min(due_in, LOOK_EVERY))
            continue
        try:
            token = await asyncio.to_thread(own.following)
        except OSError as exc:
            await _disk(exc)
            continue
        reached("after-next-token-written")
        try:
            request = CredentialRequest(token_hash=hash_of(token))
            answer = await whole(server.renew_credential(own.stored.agent, request))
        except Exception as exc:
            await _refused(exc, link, backoff)
            continue
        try:
            await asyncio.to_thread(own.follow, answer)
        except OSError as exc:
            await _disk(exc)
            continue
        log.info("the agent's credential was renewed", expires_at=own.stored.expires_at)


async def _disk(exc: OSError) -> None:
    log.error("the agent's credential cannot be written; the old one goes on", reason=str(exc))
    await asyncio.sleep(LATER)


async def _refused(exc: Exception, link: Link, backoff: Backoff) -> None:
    if judge(exc) is Trouble.BAD:
        log.error("the agent's credential is not renewed; the old one goes on", reason=told(exc))
        await asyncio.sleep(LATER)
    else:
        await link.trouble(exc, backoff, "to renew the agent's credential")
