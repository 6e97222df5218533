"""The typed client of the server's API, for programs, agents and the command line alike.

    with Client() as client:
        run = client.create_run(RunRequest(deployment="hello"))
        print(client.get_run(run.id).state)

    async with AsyncClient() as client:
        async for run in client.each_run(states=["Failed"]):
            ...

Both clients have the same methods: each is written once, in :class:`Endpoints`, as a function that
says what to send and how to read the answer. A :class:`Client` sends it and returns the answer, an
:class:`AsyncClient` returns a coroutine that does. A client may be used by many threads or tasks.

Errors: every method raises

* :class:`~shunter_work_pools.contracts.errors.ServerUnreachable` if nothing answers in time,
* a :class:`~shunter_work_pools.contracts.errors.Refused` (or one of its subclasses, such as
  ``NotFound``) if the server says no,
* :class:`~shunter_work_pools.contracts.errors.ProtocolMismatch` if what answers is not a Shunter
  server, or one of another protocol version,
* :class:`~shunter_work_pools.contracts.errors.ShunterError` if the answer cannot be understood.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)
from urllib.parse import quote, urlsplit
from uuid import UUID

from pydantic import ValidationError

from shunter_work_pools.client_tls import IF_IT_WANTS_ONE, trust
from shunter_work_pools.contracts import PROTOCOL, PROTOCOL_HEADER
from shunter_work_pools.contracts.agents import (
    LOG_MEDIA_TYPE,
    Agent,
    AgentList,
    AgentPatch,
    LogAnswer,
    ReleaseRequest,
    ReportAnswer,
    ReportBatch,
    ServerInfo,
    ServerPatch,
    SyncAnswer,
    SyncRequest,
)
from shunter_work_pools.contracts.attempts import AttemptResult, OwnAttempt, Progress
from shunter_work_pools.contracts.audit import AuditPage
from shunter_work_pools.contracts.base import Contract
from shunter_work_pools.contracts.bearer import Bearer
from shunter_work_pools.contracts.configuration import connection
from shunter_work_pools.contracts.deployments import (
    Applied,
    ApplyAnswer,
    ApplyRequest,
    BackfillAnswer,
    BackfillRequest,
    Deployment,
    DeploymentPage,
    DeploymentPatch,
    DeploymentSpec,
    Preview,
    PreviewRequest,
    RevisionList,
    RollbackRequest,
    SchedulePage,
    SchedulePatch,
    ScheduleView,
    Skipped,
)
from shunter_work_pools.contracts.errors import (
    InvalidInput,
    NotFound,
    ProtocolMismatch,
    Refused,
    ServerUnreachable,
    ShunterError,
    Unauthenticated,
    from_problem,
)
from shunter_work_pools.contracts.explanations import Explanation, Route
from shunter_work_pools.contracts.identities import (
    Credential,
    CredentialRequest,
    InvitationRequest,
    JoinRequest,
    KeyList,
    KeyRequest,
    NewKey,
    WhoAmI,
)
from shunter_work_pools.contracts.limits import Limit, LimitList, LimitPatch, LimitSpec
from shunter_work_pools.contracts.pool_checks import PoolCheck
from shunter_work_pools.contracts.pools import (
    Pool,
    PoolList,
    PoolPatch,
    PoolSpec,
    Queue,
    QueuePatch,
    QueueSpec,
)
from shunter_work_pools.contracts.runs import (
    EventList,
    ExportedRun,
    ExportPage,
    Manifest,
    Run,
    RunBatch,
    RunCreated,
    RunPage,
    RunPatch,
    RunRequest,
    RunsCreated,
)
from shunter_work_pools.contracts.secrets import (
    AttemptSecrets,
    OwnSecrets,
    Secret,
    SecretList,
    SecretsRequest,
    SecretValue,
)
from shunter_work_pools.contracts.sign_in import SignInInfo, SignInRequest
from shunter_work_pools.contracts.status import Status
from shunter_work_pools.contracts.tasks import (
    BYTES_MEDIA_TYPE,
    RESULT_SIZE_HEADER,
    Artifact,
    ArtifactList,
    JournalSize,
    OwnTasks,
    ResultSize,
    ResultSizes,
    TaskGraph,
    TaskPage,
    TaskRun,
)
from shunter_work_pools.proxies import Proxy, proxy_for
from shunter_work_pools.unreachable import START_ONE, refused_by, unreachable

# httpx brings its own command line along if rich and pygments happen to be installed: 60 ms and 10 MB
# that no agent has any use for. Told that it is not there, it goes on without.
_command_line = "httpx._main"
if _command_line not in sys.modules and "httpx" not in sys.modules:
    sys.modules[_command_line] = None  # type: ignore[assignment]
    try:
        import httpx
    finally:
        del sys.modules[_command_line]
else:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Contract)

#: Seconds to wait for a connection, and for an answer that is not held back on purpose.
CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 30.0
#: Idle connections are given up before the server gives them up, so that none is used as it closes.
_KEEPALIVE = 4.0


@dataclass(frozen=True)
class LogPart:
    """Some bytes of an attempt's output.

    Attributes:
        data: the bytes from ``start``.
        start: offset of the first.
        size: bytes that the server has by now.
        reached: how far in the attempt's output they come: other than ``size`` where some of it is missing
            and a mark takes its place.
        complete: the attempt has ended, and the server has all of its bytes or knows them to be lost.
        attempt: number of the attempt that they belong to.
    """

    data: bytes
    start: int
    size: int
    reached: int
    complete: bool
    attempt: int

    @property
    def end(self) -> int:
        """Offset after the last byte: where to go on."""
        return self.start + len(self.data)


@dataclass(frozen=True)
class ResultPart:
    """Some bytes of a result.

    Attributes:
        size: bytes that all of it has.
    """

    data: bytes
    size: int


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read.

    Attributes:
        path: below the API root, quoted.
        held: seconds the server may hold the answer back.
        read: makes the result of a 2xx answer; raises ValueError if it is not what it should be.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    held: float = 0.0

    def params(self) -> list[tuple[str, str]]:
        """The query as pairs: None left out, lists repeated, times in RFC 3339."""
        return [
            (key, _query_text(one))
            for key, value in self.query.items()
            for one in (value if isinstance(value, list | tuple) else [value])
            if one is not None
        ]


def _query_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, datetime) else str(value)


class endpoint(Generic[P, T]):
    """A method of both clients, written once as a function that makes the :class:`Call`."""

    def __init__(self, build: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__
        self.__wrapped__ = build

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self._build(client, *args, **kwargs))

        method.__doc__ = self.__doc__
        return method


def _nothing(response: httpx.Response) -> None:
    """Reads an answer that says no more than that it was done."""


def _answer(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: model.from_answer(response.content)


def _call(
    method: str,
    *path: str | UUID,
    to: type[M],
    body: Contract | None = None,
    patch: bool = False,
    **more: Any,
) -> Call[M]:
    text = body.model_dump_json(exclude_unset=patch).encode() if body is not None else None
    return Call(method, _path(*path), _answer(to), body=text, **more)


def _path(*parts: str | UUID) -> str:
    for part in parts:
        if str(part) in ("", ".", ".."):  # would name another resource, or none
            raise InvalidInput(f"{str(part)!r} is not a name", "Give the name or id of one that exists.")
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


class RunFilters(TypedDict, total=False):
    """Which runs a list or an export is about; what is left out means: any.

    Keys:
        states: shown states, any of them.
        tags: all of them.
        pool, queue, deployment: names; a queue needs its pool.
        late: whether they are marked late.
        held: whether they wait, and something that they belong to is paused.
        created_after, created_before, scheduled_after, scheduled_before: aware moments, the first of
            each pair inclusive.
        cursor: ``next`` of the page before.
        limit: runs on a page, at most 500.
    """

    states: Sequence[str]
    tags: Sequence[str]
    pool: str | None
    queue: str | None
    deployment: str | None
    late: bool | None
    held: bool | None
    created_after: datetime | None
    created_before: datetime | None
    scheduled_after: datetime | None
    scheduled_before: datetime | None
    cursor: str | None
    limit: int | None


def _run_query(filters: RunFilters) -> dict[str, Any]:
    unknown = filters.keys() - RunFilters.__annotations__.keys()
    if unknown:  # the server would not know it either, and give all runs
        raise TypeError(f"there is no filter {min(unknown)!r}")
    query: dict[str, Any] = {**filters}
    return {
        "state": list(query.pop("states", ())),
        "tag": list(query.pop("tags", ())),
    } | query


class Endpoints:
    """What the server can be asked, by either client."""

    # -- the server

    @endpoint
    def server(self) -> Call[ServerInfo]:
        """Version, protocol, clock and store of the server."""
        return _call("GET", "server", to=ServerInfo)

    @endpoint
    def ready(self) -> Call[bool]:
        """True if the server serves requests; needs no token. Raises ``Unavailable`` if it is not."""
        return Call("GET", "/readyz", lambda response: True)

    @endpoint
    def update_server(self, patch: ServerPatch) -> Call[ServerInfo]:
        """Begin or end maintenance: meanwhile nothing is handed out to agents."""
        return _call("PATCH", "server", to=ServerInfo, body=patch, patch=True)

    @endpoint
    def status(self, *, since: datetime | None = None) -> Call[Status]:
        """What runs, what is late, what failed since a moment (default: a day ago), which agents there are."""
        return _call("GET", "status", to=Status, query={"since": since})

    # -- who asks

    @endpoint
    def whoami(self) -> Call[WhoAmI]:
        """Whom the server takes this client for."""
        return _call("GET", "whoami", to=WhoAmI)

    @endpoint
    def sign_in_info(self) -> Call[SignInInfo]:
        """Where people sign in, if they can; needs no token."""
        return _call("GET", "sign-in", to=SignInInfo)

    @endpoint
    def sign_in(self, request: SignInRequest) -> Call[NewKey]:
        """Change the ID token of the server's OpenID Connect provider for a key; needs no token."""
        return _call("POST", "sign-in", to=NewKey, body=request)

    @endpoint
    def create_key(self, request: KeyRequest) -> Call[NewKey]:
        """Make a person's key; it is told this once."""
        return _call("POST", "keys", to=NewKey, body=request)

    @endpoint
    def list_keys(self, *, ended: bool = False) -> Call[KeyList]:
        """Keys, credentials of agents and invitations; those that hold no more with ``ended``."""
        return _call("GET", "keys", to=KeyList, query={"ended": ended})

    @endpoint
    def revoke_key(self, kind: str, name: str) -> Call[None]:
        """Revoke all keys of a kind (person, agent, enrolment) and name, with effect at once."""
        return Call("DELETE", _path("keys", kind, name), _nothing)

    @endpoint
    def list_audit(
        self,
        *,
        who: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Call[AuditPage]:
        """One page of who did what, newest first."""
        query = {
            "who": who,
            "action": action,
            "since": since,
            "until": until,
            "cursor": cursor,
            "limit": limit,
        }
        return _call("GET", "audit", to=AuditPage, query=query)

    # -- a run, of itself, with the token of its attempt

    @endpoint
    def own_attempt(self) -> Call[OwnAttempt]:
        """What this attempt is, and whether it is to stop."""
        return _call("GET", "attempt", to=OwnAttempt)

    @endpoint
    def own_secrets(self) -> Call[OwnSecrets]:
        """The secrets of this attempt that the server keeps."""
        return _call("GET", "attempt", "secrets", to=OwnSecrets)

    @endpoint
    def tell_progress(self, progress: Progress) -> Call[None]:
        """Say how far this attempt is."""
        return Call("POST", _path("attempt", "progress"), _nothing, body=progress.model_dump_json().encode())

    @endpoint
    def put_result(self, result: AttemptResult) -> Call[None]:
        """Give the result of this attempt before its end."""
        return Call("PUT", _path("attempt", "result"), _nothing, body=result.model_dump_json().encode())

    @endpoint
    def put_journal(self, offset: int, data: bytes) -> Call[JournalSize]:
        """Bytes of this attempt's journal from ``offset`` on, at most ``PIECE_LIMIT``; sending twice is harmless."""
        return Call(
            "PUT",
            _path("attempt", "journal"),
            _answer(JournalSize),
            query={"offset": offset},
            body=data,
            media_type=BYTES_MEDIA_TYPE,
        )

    @endpoint
    def put_task_result(self, name: str, offset: int, size: int, data: bytes) -> Call[ResultSize]:
        """Bytes from ``offset`` on of a task's result that has ``size``, at most ``PIECE_LIMIT``; before the journal's
        line that names it."""
        return Call(
            "PUT",
            _path("attempt", "results", name),
            _answer(ResultSize),
            query={"offset": offset, "size": size},
            body=data,
            media_type=BYTES_MEDIA_TYPE,
        )

    @endpoint
    def get_task_result(self, name: str, offset: int = 0) -> Call[ResultPart]:
        """Bytes of a task's result that this attempt or an earlier one gave, at most ``PIECE_LIMIT``."""
        return Call("GET", _path("attempt", "results", name), _result_part, query={"offset": offset or None})

    @endpoint
    def own_tasks(self, *, after: str | None = None, limit: int = 1000) -> Call[OwnTasks]:
        """Some of the task runs that earlier attempts of this run completed; see :class:`OwnTasks`."""
        return _call("GET", "attempt", "tasks", to=OwnTasks, query={"after": after, "limit": limit})

    # -- pools and queues

    @endpoint
    def create_pool(self, spec: PoolSpec) -> Call[Pool]:
        """Make a pool; it gets a queue named ``default``."""
        return _call("POST", "pools", to=Pool, body=spec)

    @endpoint
    def list_pools(self) -> Call[PoolList]:
        """All pools, by name."""
        return _call("GET", "pools", to=PoolList)

    @endpoint
    def get_pool(self, name: str) -> Call[Pool]:
        """One pool with its queues."""
        return _call("GET", "pools", name, to=Pool)

    @endpoint
    def update_pool(self, name: str, patch: PoolPatch) -> Call[Pool]:
        """Change the fields that are set in ``patch``."""
        return _call("PATCH", "pools", name, to=Pool, body=patch, patch=True)

    @endpoint
    def check_pool(self, name: str) -> Call[PoolCheck]:
        """Have a harmless command run in a pool, unless one is under way already: then that one."""
        return _call("POST", "pools", name, "checks", to=PoolCheck)

    @endpoint
    def get_pool_check(
        self, name: str, run: UUID, *, wait: float | None = None, seen: str | None = None
    ) -> Call[PoolCheck]:
        """One check of a pool.

        With ``wait`` (seconds, at most 10) and ``seen`` (its mark as it was) the answer is held back until there is
        something new, or the time is over.
        """
        query = {"wait": wait, "seen": seen}
        return _call("GET", "pools", name, "checks", run, to=PoolCheck, query=query, held=wait or 0.0)

    @endpoint
    def create_queue(self, pool: str, spec: QueueSpec) -> Call[Queue]:
        """Make a work queue in a pool."""
        return _call("POST", "pools", pool, "queues", to=Queue, body=spec)

    @endpoint
    def update_queue(self, pool: str, queue: str, patch: QueuePatch) -> Call[Queue]:
        """Change the fields that are set in ``patch``."""
        return _call("PATCH", "pools", pool, "queues", queue, to=Queue, body=patch, patch=True)

    @endpoint
    def delete_pool(self, name: str) -> Call[None]:
        """Delete a pool that nobody needs: no run waits or is active in it, no deployment names it."""
        return Call("DELETE", _path("pools", name), _nothing)

    @endpoint
    def delete_queue(self, pool: str, queue: str) -> Call[None]:
        """Delete a queue that nobody needs; not ``default``."""
        return Call("DELETE", _path("pools", pool, "queues", queue), _nothing)

    # -- limits

    @endpoint
    def create_limit(self, spec: LimitSpec) -> Call[Limit]:
        """Make a limit; one of a tag holds at once, also for the runs that wait and run."""
        return _call("POST", "limits", to=Limit, body=spec)

    @endpoint
    def list_limits(self) -> Call[LimitList]:
        """All limits, by name."""
        return _call("GET", "limits", to=LimitList)

    @endpoint
    def get_limit(self, name: str) -> Call[Limit]:
        """One limit, with what it counts now."""
        return _call("GET", "limits", name, to=Limit)

    @endpoint
    def update_limit(self, name: str, patch: LimitPatch) -> Call[Limit]:
        """Change the fields that are set in ``patch``; None of ``max`` or ``rate``: no such limit any more."""
        return _call("PATCH", "limits", name, to=Limit, body=patch, patch=True)

    @endpoint
    def delete_limit(self, name: str) -> Call[None]:
        """Delete a limit that no deployment names; what it held back goes on."""
        return Call("DELETE", _path("limits", name), _nothing)

    # -- secrets

    @endpoint
    def list_secrets(self) -> Call[SecretList]:
        """All secrets by name, without their values."""
        return _call("GET", "secrets", to=SecretList)

    @endpoint
    def get_secret(self, name: str) -> Call[Secret]:
        """One secret, without its value."""
        return _call("GET", "secrets", name, to=Secret)

    @endpoint
    def set_secret(self, name: str, value: SecretValue) -> Call[Secret]:
        """Make a secret, or give it another value."""
        return _call("PUT", "secrets", name, to=Secret, body=value)

    @endpoint
    def delete_secret(self, name: str, *, force: bool = False) -> Call[None]:
        """Delete a secret that no deployment names; with ``force`` any."""
        return Call("DELETE", _path("secrets", name), _nothing, query={"force": force or None})

    # -- deployments

    @endpoint
    def apply(self, request: ApplyRequest) -> Call[ApplyAnswer]:
        """Make or change several deployments, all or none; with ``dry_run`` only say what would change."""
        return _call("POST", "deployments", to=ApplyAnswer, body=request)

    @endpoint
    def rollback_deployment(self, name: str, request: RollbackRequest) -> Call[Applied]:
        """Make an earlier revision the current one, as a new revision."""
        return _call("POST", "deployments", name, "rollback", to=Applied, body=request)

    @endpoint
    def delete_deployment(self, name: str) -> Call[None]:
        """Delete a deployment none of whose runs is active; those that wait are cancelled, its history goes."""
        return Call("DELETE", _path("deployments", name), _nothing)

    @endpoint
    def backfill(self, name: str, request: BackfillRequest) -> Call[BackfillAnswer]:
        """Make runs of past slots, up to ``limit`` of them; go on with ``after`` set to the answer's ``next``."""
        return _call("POST", "deployments", name, "backfill", to=BackfillAnswer, body=request)

    @endpoint
    def flush_late(self, name: str) -> Call[Skipped]:
        """End late runs of a deployment that wait, as skipped; ask again while there are ``more``."""
        return _call("POST", "deployments", name, "flush-late", to=Skipped)

    @endpoint
    def list_deployment_events(self, name: str) -> Call[EventList]:
        """What happened to a deployment apart from its runs, oldest first, e.g. slots that were not made up for."""
        return _call("GET", "deployments", name, "events", to=EventList)

    # -- schedules

    @endpoint
    def list_schedules(
        self, *, deployment: str | None = None, cursor: str | None = None, limit: int | None = None
    ) -> Call[SchedulePage]:
        """One page of schedules, by deployment and name."""
        query = {"deployment": deployment, "cursor": cursor, "limit": limit}
        return _call("GET", "schedules", to=SchedulePage, query=query)

    @endpoint
    def preview_schedule(
        self, deployment: str, schedule: str, *, after: datetime | None = None, count: int | None = None
    ) -> Call[Preview]:
        """The next slots of a schedule."""
        query = {"after": after, "count": count}
        return _call(
            "GET", "deployments", deployment, "schedules", schedule, "preview", to=Preview, query=query
        )

    @endpoint
    def preview(self, request: PreviewRequest) -> Call[Preview]:
        """The next slots of a schedule that need not be deployed."""
        return _call("POST", "schedules", "preview", to=Preview, body=request)

    @endpoint
    def update_schedule(self, deployment: str, schedule: str, patch: SchedulePatch) -> Call[ScheduleView]:
        """Pause or resume a schedule."""
        path = ("deployments", deployment, "schedules", schedule)
        return _call("PATCH", *path, to=ScheduleView, body=patch, patch=True)

    # -- deployments, one by one

    @endpoint
    def deploy(self, name: str, spec: DeploymentSpec) -> Call[Applied]:
        """Make a deployment, or a new revision of it; the same spec twice changes nothing."""
        return _call("PUT", "deployments", name, to=Applied, body=spec)

    @endpoint
    def list_deployments(
        self, *, cursor: str | None = None, limit: int | None = None
    ) -> Call[DeploymentPage]:
        """One page of deployments, by name."""
        return _call("GET", "deployments", to=DeploymentPage, query={"cursor": cursor, "limit": limit})

    @endpoint
    def get_deployment(self, name: str) -> Call[Deployment]:
        """One deployment with its current revision."""
        return _call("GET", "deployments", name, to=Deployment)

    @endpoint
    def list_revisions(self, name: str) -> Call[RevisionList]:
        """The revisions of a deployment, newest first."""
        return _call("GET", "deployments", name, "revisions", to=RevisionList)

    @endpoint
    def route(self, name: str, *, tags: Sequence[str] = ()) -> Call[Route]:
        """Where a deployment's runs go, and why: every pool and agent; ``tags`` are a run's, over the deployment's."""
        return _call("GET", "deployments", name, "route", to=Route, query={"tag": list(tags)})

    @endpoint
    def update_deployment(self, name: str, patch: DeploymentPatch) -> Call[Deployment]:
        """Pause or resume a deployment."""
        return _call("PATCH", "deployments", name, to=Deployment, body=patch, patch=True)

    # -- runs

    @endpoint
    def create_run(self, request: RunRequest) -> Call[RunCreated]:
        """Make one run."""
        return _call("POST", "runs", to=RunCreated, body=request)

    @endpoint
    def create_runs(self, batch: RunBatch) -> Call[RunsCreated]:
        """Make many runs, all or none."""
        return _call("POST", "runs", "batch", to=RunsCreated, body=batch)

    @endpoint
    def list_runs(self, **filters: Unpack[RunFilters]) -> Call[RunPage]:
        """One page of runs, newest first: in any of ``states``, with all of ``tags``."""
        return _call("GET", "runs", to=RunPage, query=_run_query(filters))

    @endpoint
    def get_run(
        self, run: str | UUID, *, wait: float | None = None, seen: tuple[str, int] | None = None
    ) -> Call[Run]:
        """One run with its attempts; ``run`` is its id or any unique suffix of it.

        With ``wait`` (seconds, at most 10) and ``seen`` (state and attempt count known so far) the
        answer is held back until there is something new, or the time is over.
        """
        known = f"{seen[0]}:{seen[1]}" if seen else None
        return _call("GET", "runs", run, to=Run, query={"wait": wait, "seen": known}, held=wait or 0.0)

    @endpoint
    def list_events(self, run: str | UUID) -> Call[EventList]:
        """What happened to a run, oldest first."""
        return _call("GET", "runs", run, "events", to=EventList)

    @endpoint
    def get_manifest(self, run: str | UUID, *, attempt: int | None = None) -> Call[Manifest]:
        """What the engine was asked for, for an attempt; None: for the last of which that is known."""
        return _call("GET", "runs", run, "manifest", to=Manifest, query={"attempt": attempt})

    @endpoint
    def list_tasks(
        self,
        run: str | UUID,
        *,
        states: Sequence[str] = (),
        name: str | None = None,
        cursor: str | None = None,
        limit: int = 1000,
    ) -> Call[TaskPage]:
        """One page of the task runs of a run, in the order in which they were made; at most 1000."""
        query = {"state": list(states), "name": name, "cursor": cursor, "limit": limit}
        return _call("GET", "runs", run, "tasks", to=TaskPage, query=query)

    @endpoint
    def get_graph(self, run: str | UUID, *, each: bool = False) -> Call[TaskGraph]:
        """How the task runs of a run depend on each other, equals as one node, or ``each`` by itself."""
        return _call("GET", "runs", run, "graph", to=TaskGraph, query={"each": each or None})

    @endpoint
    def list_artifacts(self, run: str | UUID) -> Call[ArtifactList]:
        """What a run left for people to look at, without the data."""
        return _call("GET", "runs", run, "artifacts", to=ArtifactList)

    @endpoint
    def get_artifact(self, run: str | UUID, key: str) -> Call[Artifact]:
        """One artifact of a run, with its data."""
        return _call("GET", "runs", run, "artifacts", key, to=Artifact)

    @endpoint
    def update_run(self, run: str | UUID, patch: RunPatch) -> Call[Run]:
        """Change the priority of a run that waits."""
        return _call("PATCH", "runs", run, to=Run, body=patch, patch=True)

    @endpoint
    def explain_run(self, run: str | UUID) -> Call[Explanation]:
        """Why a run is where it is, in one sentence, and what a person can do about it."""
        return _call("GET", "runs", run, "explain", to=Explanation)

    @endpoint
    def cancel_run(self, run: str | UUID) -> Call[Run]:
        """Stop a run, or keep it from starting."""
        return _call("POST", "runs", run, "cancel", to=Run)

    @endpoint
    def retry_run(self, run: str | UUID) -> Call[Run]:
        """Let a run that ended other than Completed go on with its next attempt."""
        return _call("POST", "runs", run, "retry", to=Run)

    @endpoint
    def skip_run(self, run: str | UUID) -> Call[Run]:
        """End a run that waits, as skipped."""
        return _call("POST", "runs", run, "skip", to=Run)

    @endpoint
    def delete_run(self, run: str | UUID) -> Call[None]:
        """Delete a run that has ended, with its log and events."""
        return Call("DELETE", _path("runs", run), _nothing)

    @endpoint
    def export_runs(self, **filters: Unpack[RunFilters]) -> Call[ExportPage]:
        """One page of runs with attempts and events; filters and order as :meth:`list_runs`."""
        return _call("GET", "runs", "export", to=ExportPage, query=_run_query(filters))

    @endpoint
    def read_log(
        self,
        run: str | UUID,
        *,
        attempt: int | None = None,
        start: int = 0,
        end: int | None = None,
        wait: float | None = None,
    ) -> Call[LogPart]:
        """Bytes ``start`` to ``end`` (exclusive; None: all there are) of an attempt's output.

        An answer has 4 MiB at most: go on from its ``end``. ``attempt`` None: the latest. With nothing
        after ``start`` yet, the answer is held back up to ``wait`` seconds.
        """
        last = "" if end is None else str(end - 1)
        return Call(
            "GET",
            _path("runs", run, "logs"),
            lambda response: _log_part(response, start),
            query={"attempt": attempt, "wait": wait},
            headers={"Range": f"bytes={start}-{last}"},
            held=wait or 0.0,
        )

    # -- agents

    @endpoint
    def list_agents(self) -> Call[AgentList]:
        """All agents, by name."""
        return _call("GET", "agents", to=AgentList)

    @endpoint
    def get_agent(self, name: str) -> Call[Agent]:
        """One agent."""
        return _call("GET", "agents", name, to=Agent)

    @endpoint
    def update_agent(self, name: str, patch: AgentPatch) -> Call[Agent]:
        """Pause or resume it: paused, it is given nothing new."""
        return _call("PATCH", "agents", name, to=Agent, body=patch, patch=True)

    @endpoint
    def drain_agent(self, name: str) -> Call[Agent]:
        """Tell an agent to take nothing new, and to end once nothing is left; its next start takes runs again."""
        return _call("POST", "agents", name, "drain", to=Agent)

    @endpoint
    def remove_agent(self, name: str, *, give_up: bool = False) -> Call[None]:
        """Forget an agent that has not been heard of for ``lost_after``.

        With ``give_up`` its machine is known to be gone: the attempts that it holds end at once, as its
        deployments' ``on_lost`` says. Otherwise it may hold none.
        """
        return Call("DELETE", _path("agents", name), _nothing, query={"give_up": give_up or None})

    @endpoint
    def sync(self, name: str, request: SyncRequest) -> Call[SyncAnswer]:
        """An agent's sync, held by the server up to ``request.hold_for`` seconds."""
        return _call("POST", "agents", name, "sync", to=SyncAnswer, body=request, held=request.hold_for)

    @endpoint
    def report(self, name: str, batch: ReportBatch) -> Call[ReportAnswer]:
        """An agent's reports; sending them twice is harmless."""
        return _call("POST", "agents", name, "reports", to=ReportAnswer, body=batch)

    @endpoint
    def upload_logs(self, name: str, body: bytes) -> Call[LogAnswer]:
        """An agent's log frames (see ``contracts.log_frames.encode_frames``)."""
        path = _path("agents", name, "logs")
        return Call("POST", path, _answer(LogAnswer), body=body, media_type=LOG_MEDIA_TYPE)

    @endpoint
    def upload_journals(self, name: str, body: bytes) -> Call[LogAnswer]:
        """Frames of journals, as of logs; each attempt's ``size`` is the end of the last whole line that the server
        has, where to go on."""
        path = _path("agents", name, "journals")
        return Call("POST", path, _answer(LogAnswer), body=body, media_type=LOG_MEDIA_TYPE)

    @endpoint
    def upload_task_results(
        self, name: str, run: UUID, attempt: int, epoch: int, body: bytes
    ) -> Call[ResultSizes]:
        """Pieces of results (see ``contracts.result_pieces.encode_pieces``) of an attempt that the agent holds (or held),
        at most ``PIECE_LIMIT`` bytes; before the journal's lines that name them. Raises ``StaleEpoch`` if it does not."""
        return Call(
            "POST",
            _path("agents", name, "results", run, str(attempt)),
            _answer(ResultSizes),
            query={"epoch": epoch},
            body=body,
            media_type=BYTES_MEDIA_TYPE,
        )

    @endpoint
    def invite(self, request: InvitationRequest) -> Call[NewKey]:
        """Make an enrolment token, by which agents join."""
        return _call("POST", "invitations", to=NewKey, body=request)

    @endpoint
    def join(self, request: JoinRequest) -> Call[Credential]:
        """Become an agent; the client has the enrolment token. The same request again is answered alike."""
        return _call("POST", "join", to=Credential, body=request)

    @endpoint
    def renew_credential(self, name: str, request: CredentialRequest) -> Call[Credential]:
        """Give an agent a new token; the old one holds until the new one was used."""
        return _call("POST", "agents", name, "credential", to=Credential, body=request)

    @endpoint
    def release(self, name: str, request: ReleaseRequest) -> Call[ReportAnswer]:
        """Attempts that an agent gives back before it started them."""
        return _call("POST", "agents", name, "release", to=ReportAnswer, body=request)

    @endpoint
    def leave(self, name: str, request: ReleaseRequest) -> Call[ReportAnswer]:
        """Attempts that an agent leaves to others which reach their work."""
        return _call("POST", "agents", name, "leave", to=ReportAnswer, body=request)

    @endpoint
    def attempt_secrets(self, name: str, request: SecretsRequest) -> Call[AttemptSecrets]:
        """The secrets of an attempt that an agent holds."""
        return _call("POST", "agents", name, "secrets", to=AttemptSecrets, body=request)


def _result_part(response: httpx.Response) -> ResultPart:
    try:
        return ResultPart(response.content, int(response.headers[RESULT_SIZE_HEADER]))
    except KeyError as exc:
        raise ValueError(f"header {exc} is missing") from exc


def _log_part(response: httpx.Response, start: int) -> LogPart:
    # A server that ignores the range sends everything.
    data = response.content if response.status_code == 206 else response.content[start:]
    try:
        size = response.headers["Shunter-Log-Size"]
        return LogPart(
            data=data,
            start=start,
            size=int(size),
            reached=int(response.headers.get("Shunter-Log-Reached", size)),  # new with protocol 2
            complete=response.headers["Shunter-Log-Complete"] == "true",
            attempt=int(response.headers["Shunter-Attempt"]),
        )
    except KeyError as exc:
        raise ValueError(f"header {exc} is missing") from exc


class _Core(Endpoints):
    """What both clients share: address, token, the way there, the request, and the judgement of its answer.

    Attributes:
        proxy: by which the server is reached; None: directly.
    """

    def __init__(
        self,
        api_url: str | None = None,
        token: str | Bearer | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        address, self._bearer = connection(api_url, token)
        self.api_url = _checked_url(address)
        self.proxy = proxy_for(self.api_url)
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout

    def _settings(self) -> dict[str, Any]:
        url = httpx.URL(self.api_url)
        headers = {"User-Agent": "shunter", PROTOCOL_HEADER: str(PROTOCOL)}
        return {
            "headers": headers,
            "verify": trust(url.scheme),
            "proxy": _as_httpx(self.proxy),
            "trust_env": False,  # which proxy leads there is decided above
            "limits": httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE),
        }

    def _request(self, call: Call[Any], token: str | None) -> dict[str, Any]:
        headers = dict(call.headers)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if call.body is not None:
            headers["Content-Type"] = call.media_type
        elif call.method == "POST":
            headers["Content-Type"] = "application/json"  # a write without one is refused
        return {
            "method": call.method,
            "url": self.api_url + call.path,
            "params": call.params() or None,
            "content": call.body,
            "headers": headers,
            "timeout": httpx.Timeout(self._answer_timeout + call.held, connect=self._connect_timeout),
        }

    def _result(self, call: Call[T], response: httpx.Response) -> T:
        # It is read. Tied to what it came from it would stay, with the request's body, until the garbage collector looks:
        # an agent has megabytes in each.
        del response.stream
        self._check(response)
        try:
            return call.read(response)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".lstrip(": ")
            raise self._not_understood(response, reason) from exc
        except ValueError as exc:
            raise self._not_understood(response, str(exc)) from exc

    def _check(self, response: httpx.Response) -> None:
        """Raise unless this is a 2xx answer of a Shunter server that speaks our protocol."""
        spoken = response.headers.get(PROTOCOL_HEADER)
        if spoken is None:
            if self.proxy is not None and self.api_url.startswith("http://") and not response.is_success:
                status = f"{response.status_code} {response.reason_phrase}"
                raise refused_by(self.proxy, status, self.api_url, **_asked_to_wait(response))
            # A proxy in front of a server that is away, or that has had enough of us.
            if response.status_code in (408, 429) or response.status_code >= 500:
                raise ServerUnreachable(
                    f"no server answers at {self.api_url}: a proxy there says "
                    f"{response.status_code} {response.reason_phrase}",
                    START_ONE,
                    **_asked_to_wait(response),
                )
            if response.is_redirect:
                raise ProtocolMismatch(
                    f"what answers at {self.api_url} is not a Shunter server: it says that this is elsewhere, "
                    f"at {response.headers.get('Location', '?')}",
                    "Set SHUNTER_API_URL to the address there, up to /api.",
                )
            if response.status_code == 400 and b"SSL certificate" in response.content:  # nginx says it so
                raise ServerUnreachable(
                    f"the proxy at {self.api_url} does not let this client in without a right certificate",
                    IF_IT_WANTS_ONE,
                )
            raise ProtocolMismatch(
                f"what answers at {self.api_url} is not a Shunter server "
                f"(it said {response.status_code} {response.reason_phrase}, without {PROTOCOL_HEADER})",
                "Set SHUNTER_API_URL to the server's address, for example http://127.0.0.1:4400/api.",
            )
        if spoken != str(PROTOCOL):
            raise ProtocolMismatch(
                f"the server at {self.api_url} speaks protocol {spoken}, this client speaks {PROTOCOL}",
                "Install the version of shunter that the server runs.",
            )
        if response.is_success:
            return
        refusal = _refusal(response)
        refusal.extra |= _asked_to_wait(response)
        if isinstance(refusal, NotFound) and not self.api_url.endswith("/api"):
            refusal.remedy = (
                f"{refusal.remedy}\nSHUNTER_API_URL is {self.api_url}: it usually ends in /api.".strip()
            )
        raise refusal

    def _not_understood(self, response: httpx.Response, reason: str) -> ShunterError:
        return ShunterError(
            f"the answer of {response.request.method} {response.request.url} is not understood: {reason}",
            "Client and server may be of different versions: compare `shunter --version` on both.",
        )

    def _unreachable(self, exc: httpx.RequestError | ssl.SSLError) -> ServerUnreachable:
        waited = {"connect_timeout": self._connect_timeout, "answer_timeout": self._answer_timeout}
        return unreachable(exc, self.api_url, self.proxy, **waited)


def _asked_to_wait(response: httpx.Response) -> dict[str, float]:
    """``retry_after``: seconds that whoever answered wants to be left alone (RFC 9110, 10.2.3); {}: none said."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return {"retry_after": float(text[:9])}
    then = _http_date(text)
    if then is None:
        return {}
    now = _http_date(response.headers.get("Date", "")) or datetime.now(UTC)
    return {"retry_after": max(0.0, (then - now).total_seconds())}


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _refusal(response: httpx.Response) -> Refused:
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if isinstance(body, dict) and ("detail" in body or "title" in body):
        return from_problem(response.status_code, body)
    request = response.request
    refused = Refused(
        f"{request.method} {request.url} was answered {response.status_code} {response.reason_phrase}"
    )
    refused.http_status = response.status_code
    return refused


def _checked_url(text: str) -> str:
    try:
        parts, url = urlsplit(text), httpx.URL(text)
        reason = ""
        if url.scheme not in ("http", "https") or not url.host or parts.port == 0:
            reason = "it must begin with http:// or https:// and a host"
    except (httpx.InvalidURL, ValueError) as exc:
        reason = str(exc)
    if reason:
        raise InvalidInput(
            f"{text!r} is not the address of a server: {reason}",
            "Set SHUNTER_API_URL to something like http://127.0.0.1:4400/api.",
        )
    return text.rstrip("/")


def _as_httpx(proxy: Proxy | None) -> httpx.Proxy | None:
    if proxy is None:
        return None
    return httpx.Proxy(proxy.url, ssl_context=trust("https") if proxy.url.startswith("https:") else None)


class Client(_Core):
    """The client for programs without an event loop.

    Args:
        api_url: the server's API root; default: the setting ``api_url``, else the local server.
        token: or what gives it, asked before each request; default: the setting ``token`` or ``token_file``, else the
            token file in this user's Shunter home.
        connect_timeout, answer_timeout: seconds; what the server holds on purpose is added.

    Raises:
        InvalidInput: ``api_url`` is not one, the settings are wrong, or the token file cannot be read.
    """

    def __init__(
        self,
        api_url: str | None = None,
        token: str | Bearer | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        super().__init__(api_url, token, connect_timeout=connect_timeout, answer_timeout=answer_timeout)
        self._http = httpx.Client(**self._settings())

    def send(self, call: Call[T]) -> T:
        """Send one call and return its result."""
        token = self._bearer()
        try:
            return self._sent(call, token)
        except Unauthenticated:
            newer = self._bearer()
            if newer == token:
                raise
            return self._sent(call, newer)  # it was replaced while this one was under way

    def _sent(self, call: Call[T], token: str | None) -> T:
        try:
            response = self._http.request(**self._request(call, token))
        except (
            httpx.RequestError,
            ssl.SSLError,
        ) as exc:  # also an answer that cannot be decompressed; an alert of TLS
            raise self._unreachable(exc) from exc
        return self._result(call, response)

    def each_run(self, **filters: Unpack[RunFilters]) -> Iterator[Run]:
        """All runs, newest first, page by page; filters as :meth:`list_runs`."""
        for page in self._pages(self.list_runs, **filters):
            yield from page.runs

    def each_exported_run(self, **filters: Unpack[RunFilters]) -> Iterator[ExportedRun]:
        """All runs with attempts and events, page by page; filters as :meth:`list_runs`."""
        for page in self._pages(self.export_runs, **filters):
            yield from page.runs

    def each_task(self, run: str | UUID, *, states: Sequence[str] = ()) -> Iterator[TaskRun]:
        """All task runs of a run, in the order in which they were made, page by page."""
        for page in self._pages(self.list_tasks, run=run, states=states):
            yield from page.tasks

    def each_deployment(self) -> Iterator[Deployment]:
        """All deployments, by name, page by page."""
        for page in self._pages(self.list_deployments):
            yield from page.deployments

    def each_schedule(self, deployment: str | None = None) -> Iterator[ScheduleView]:
        """All schedules, or those of a deployment, by deployment and name, page by page."""
        for page in self._pages(self.list_schedules, deployment=deployment):
            yield from page.schedules

    def _pages(self, ask: Callable[..., Any], **query: Any) -> Iterator[Any]:
        while True:
            page = ask(**query)
            yield page
            if page.next is None:
                return
            query["cursor"] = page.next

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> Literal[False]:
        self.close()
        return False


class AsyncClient(_Core):
    """The client for asyncio; arguments and errors as :class:`Client`."""

    def __init__(
        self,
        api_url: str | None = None,
        token: str | Bearer | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        super().__init__(api_url, token, connect_timeout=connect_timeout, answer_timeout=answer_timeout)
        self._http = httpx.AsyncClient(**self._settings())

    async def send(self, call: Call[T]) -> T:
        """Send one call and return its result."""
        token = self._bearer()
        try:
            return await self._sent(call, token)
        except Unauthenticated:
            newer = self._bearer()
            if newer == token:
                raise
            return await self._sent(call, newer)  # it was replaced while this one was under way

    async def _sent(self, call: Call[T], token: str | None) -> T:
        try:
            response = await self._http.request(**self._request(call, token))
        except (
            httpx.RequestError,
            ssl.SSLError,
        ) as exc:  # also an answer that cannot be decompressed; an alert of TLS
            raise self._unreachable(exc) from exc
        return self._result(call, response)

    async def each_run(self, **filters: Unpack[RunFilters]) -> AsyncIterator[Run]:
        """All runs, newest first, page by page; filters as :meth:`list_runs`."""
        async for page in self._pages(self.list_runs, **filters):
            for run in page.runs:
                yield run

    async def each_exported_run(self, **filters: Unpack[RunFilters]) -> AsyncIterator[ExportedRun]:
        """All runs with attempts and events, page by page; filters as :meth:`list_runs`."""
        async for page in self._pages(self.export_runs, **filters):
            for run in page.runs:
                yield run

    async def each_task(self, run: str | UUID, *, states: Sequence[str] = ()) -> AsyncIterator[TaskRun]:
        """All task runs of a run, in the order in which they were made, page by page."""
        async for page in self._pages(self.list_tasks, run=run, states=states):
            for task in page.tasks:
                yield task

    async def each_deployment(self) -> AsyncIterator[Deployment]:
        """All deployments, by name, page by page."""
        async for page in self._pages(self.list_deployments):
            for deployment in page.deployments:
                yield deployment

    async def each_schedule(self, deployment: str | None = None) -> AsyncIterator[ScheduleView]:
        """All schedules, or those of a deployment, by deployment and name, page by page."""
        async for page in self._pages(self.list_schedules, deployment=deployment):
            for schedule in page.schedules:
                yield schedule

    async def _pages(self, ask: Callable[..., Any], **query: Any) -> AsyncIterator[Any]:
        while True:
            page = await ask(**query)
            yield page
            if page.next is None:
                return
            query["cursor"] = page.next

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> Literal[False]:
        await self.close()
        return False
