"""The secrets of attempts: fetched for a launch, and again by a later life or another agent for what is masked.

Their values are in memory only: in what a launcher is given once, and as what is looked for in the output.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from shunter_agents.link import told
from shunter_agents.own_secrets import OwnSecrets, own_values
from shunter_infrastructure.launcher import LaunchFailed, NotReady, Prepared
from shunter_work_pools.contracts.secrets import AttemptSecrets, SecretsRequest
from shunter_work_pools.contracts.states import Cause
from shunter_work_pools.masking import Mask

if TYPE_CHECKING:
    from shunter_agents.attempt import Attempt


class SecretServer(Protocol):
    """What is needed of the client.

    Attributes:
        api_url: by which runs reach the server, too.
    """

    api_url: str

    async def attempt_secrets(self, name: str, request: SecretsRequest) -> AttemptSecrets: ...


class Secrets:
    """Gets them from the server and from the agent's own side.

    Args:
        server: the client.
        agent, session: who asks.
        own: the agent's own.
        authorities: the file by which the agent believes the server, and runs that speak to it, too; None: the system's.
    """

    def __init__(
        self,
        server: SecretServer,
        agent: str,
        session: UUID,
        own: OwnSecrets,
        authorities: Path | None = None,
    ) -> None:
        self._server = server
        self._agent = agent
        self._session = session
        self._own = own
        self._authorities = authorities

    async def prepare(self, attempt: Attempt, prepared: Prepared) -> Prepared:
        """With the secrets that it is launched with; they are masked from now on.

        Raises:
            LaunchFailed: one is not there.
            NotReady: the server does not give them now.
        """
        if not attempt.assignment.wants_secrets:
            return prepared
        own = own_values(attempt.assignment.work, self._own)
        got = await self._fetch(attempt)
        if got.missing:
            names = ", ".join(map(repr, got.missing))
            raise LaunchFailed(
                Cause.REJECTED,
                f"there is no secret {names} any more",
                f"Set it: `shunter secret set {got.missing[0]}`; or deploy without it.",
            )
        if got.unreadable:
            raise _unreadable(got)
        attempt.mask = _mask(attempt, got, own)
        return replace(
            prepared,
            secrets={**prepared.secrets, **own, **got.env, **self._token(got)},
            template_secrets={**prepared.template_secrets, **got.template_env},
            source_secret=got.source,
            authorities=None if got.token is None else self._authorities,
        )

    def _token(self, got: AttemptSecrets) -> dict[str, str]:
        """What the run needs to tell the server of itself."""
        if got.token is None:
            return {}
        return {"SHUNTER_RUN_TOKEN": got.token, "SHUNTER_API_URL": self._server.api_url}

    async def recall(self, attempt: Attempt) -> None:
        """Learn what is to be masked of an attempt that was found running, or ended.

        Raises:
            NotReady: the server does not say; with a cause: it cannot.
        """
        own: dict[str, str] = {}
        with contextlib.suppress(LaunchFailed):  # it is gone from here since then
            own = own_values(attempt.assignment.work, self._own)
        got = await self._fetch(attempt)
        if got.unreadable:
            raise _unreadable(got)
        attempt.mask = _mask(attempt, got, own)

    async def _fetch(self, attempt: Attempt) -> AttemptSecrets:
        if not attempt.assignment.wants_server_secrets:
            return AttemptSecrets()
        run, number = attempt.key
        request = SecretsRequest(
            session=self._session, run=run, attempt=number, epoch=attempt.assignment.epoch
        )
        try:
            return await self._server.attempt_secrets(self._agent, request)
        except Exception as exc:
            raise NotReady(f"the server does not give its secrets: {told(exc)}") from exc


def _unreadable(got: AttemptSecrets) -> NotReady:
    return NotReady(
        f"the server has no key for {', '.join(got.unreadable)}",
        "Give the server its secret key back, or set the values anew.",
        cause=Cause.REJECTED,
    )


def _mask(attempt: Attempt, got: AttemptSecrets, own: dict[str, str]) -> Mask:
    return Mask([*got.values, *own.values()], attempt.mask)
