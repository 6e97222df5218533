"""The link to the server: what its errors mean, how long to wait, and when to say that it is away."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable
from enum import Enum
from typing import Protocol, TypeVar
from uuid import UUID

from shunter_work_pools.contracts.agents import (
    LogAnswer,
    ReleaseRequest,
    ReportAnswer,
    ReportBatch,
    SyncAnswer,
    SyncRequest,
)
from shunter_work_pools.contracts.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    NameInUse,
    NotFound,
    ProtocolMismatch,
    ShunterError,
    TooLarge,
    Unauthenticated,
)
from shunter_work_pools.contracts.identities import Credential, CredentialRequest
from shunter_work_pools.contracts.pools import Pool, PoolPatch, PoolSpec
from shunter_work_pools.contracts.secrets import AttemptSecrets, SecretsRequest
from shunter_work_pools.contracts.tasks import ResultSizes
from shunter_work_pools.daemon_log import get_logger

log = get_logger()
T = TypeVar("T")

#: Seconds: a server that is away for less than QUICK_FOR is found again within QUICK_LIMIT.
QUICK_LIMIT = 1.5
QUICK_FOR = 60.0
SLOW_LIMIT = 10.0
#: Seconds within which an answer must be there as a whole; a request may take its time at so many bytes a second.
WHOLE_WITHIN, SLOWEST = 30.0, 16 * 1024
#: Seconds between attempts that need a person's help.
DENIED_DELAY = 10.0


class Server(Protocol):
    """What the daemon needs of the client.

    Attributes:
        api_url: root of the API.
    """

    api_url: str

    async def get_pool(self, name: str) -> Pool: ...
    async def create_pool(self, spec: PoolSpec) -> Pool: ...
    async def update_pool(self, name: str, patch: PoolPatch) -> Pool: ...
    async def renew_credential(self, name: str, request: CredentialRequest) -> Credential: ...
    async def sync(self, name: str, request: SyncRequest) -> SyncAnswer: ...
    async def report(self, name: str, batch: ReportBatch) -> ReportAnswer: ...
    async def upload_logs(self, name: str, body: bytes) -> LogAnswer: ...
    async def upload_journals(self, name: str, body: bytes) -> LogAnswer: ...
    async def upload_task_results(
        self, name: str, run: UUID, attempt: int, epoch: int, body: bytes
    ) -> ResultSizes: ...
    async def release(self, name: str, request: ReleaseRequest) -> ReportAnswer: ...
    async def leave(self, name: str, request: ReleaseRequest) -> ReportAnswer: ...
    async def attempt_secrets(self, name: str, request: SecretsRequest) -> AttemptSecrets: ...


class Trouble(Enum):
    """What an error of a request asks for."""

    AWAY = "away"  # wait, send the same again
    DENIED = "denied"  # a person must do something; wait long, send the same again
    UNKNOWN = "unknown"  # the server does not know us (yet): the next sync will change that
    BAD = "bad"  # this request will never be taken as it is


def judge(exc: Exception) -> Trouble:
    """What to do about an error. Whatever is not known is taken for a server that is away."""
    if isinstance(exc, Unauthenticated | Forbidden | ProtocolMismatch | NameInUse):
        return Trouble.DENIED
    if isinstance(exc, NotFound):
        return Trouble.UNKNOWN
    if isinstance(exc, BadRequest | TooLarge | Conflict):
        return Trouble.BAD
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):
        return Trouble.BAD  # it cannot even be put into words (errors of TLS certificates are both)
    return Trouble.AWAY


def told(exc: Exception) -> str:
    """The error in words for the log."""
    return exc.told if isinstance(exc, ShunterError) else repr(exc)


class Backoff:
    """Seconds to wait before each next try, with jitter, never for ever."""

    def __init__(self, limit: float = SLOW_LIMIT) -> None:
        self._limit = limit
        self._since = 0.0
        self._tries = 0

    def reset(self) -> None:
        """It went well: begin anew."""
        self._tries = 0

    def next(self, asked: float = 0.0) -> float:
        """The next delay; at least ``asked`` (what the server wants), up to a minute."""
        if self._tries == 0:
            self._since = time.monotonic()
        self._tries = min(self._tries + 1, 20)
        if time.monotonic() - self._since > QUICK_FOR:
            least, most = self._limit / 2, self._limit
        else:
            least, most = 0.05, min(QUICK_LIMIT, self._limit)
        grown = min(0.2 * 2 ** (self._tries - 1), most)
        return max(random.uniform(least, max(least, grown)), min(asked, 60.0))  # nosec B311


async def whole(work: Awaitable[T], size: int = 0) -> T:
    """The answer to a request of ``size`` bytes. One that comes byte by byte never times out by itself.

    Raises:
        TimeoutError: it was not there as a whole in time.
    """
    limit = WHOLE_WITHIN + size / SLOWEST
    try:
        async with asyncio.timeout(limit):
            return await work
    except TimeoutError:
        raise TimeoutError(f"no whole answer within {limit:.0f} seconds") from None


class Link:
    """Whether the server is there, as seen by all that speak to it; told once on each change."""

    def __init__(self) -> None:
        self.away_since: float | None = None
        self._back = asyncio.Event()

    @property
    def away(self) -> bool:
        """The last request of somebody found nobody."""
        return self.away_since is not None

    def down(self, exc: Exception) -> None:
        """A request failed because of the server."""
        if self.away_since is None:
            self.away_since = time.monotonic()
            self._back.clear()
            log.warning("the server is away; what runs goes on, what is owed waits here", reason=told(exc))

    def up(self) -> None:
        """A request went well."""
        if self.away_since is not None:
            log.info("the server is back", away_seconds=round(time.monotonic() - self.away_since, 1))
            self.away_since = None
        self._back.set()

    async def pause(self, delay: float) -> None:
        """Wait, but not longer than until somebody finds the server back."""
        if not self.away:
            await asyncio.sleep(delay)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._back.wait()

    async def trouble(self, exc: Exception, backoff: Backoff, doing: str) -> None:
        """Wait after an error that will pass by itself or by a person's help."""
        if judge(exc) is Trouble.DENIED:
            log.error(f"the server refuses {doing}; trying again", reason=told(exc), seconds=DENIED_DELAY)
            await asyncio.sleep(DENIED_DELAY)
            return
        if judge(exc) is Trouble.UNKNOWN:
            await asyncio.sleep(backoff.next())
            return
        self.down(exc)
        await self.pause(backoff.next(asked_delay(exc)))


def asked_delay(exc: Exception) -> float:
    """Seconds that the server asked to wait (Retry-After), 0 if it did not."""
    extra = getattr(exc, "extra", {})
    value = getattr(exc, "retry_after", None) or extra.get("retry_after")
    try:
        return float(value) if value is not None else 0.0
    except (TypeError, ValueError):
        return 0.0
