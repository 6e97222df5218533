"""The outermost layer: every request passes Host, token, media type and size before any route.

Who has the token stands in the request's scope from then on, as its ``admission``; what he may is for
:mod:`~shunter_work_pools.api.permissions` to say.

Loopback is no boundary: a page in a browser can reach it, too. So Host must be a name this server is
known by (against DNS rebinding), a token is wanted, and writes are taken only in media types that a
page of another origin cannot send without asking first.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from shunter_work_pools.api.browsers import refuse_foreign_pages, the_host
from shunter_work_pools.api.permissions import address_of
from shunter_work_pools.contracts import PROTOCOL, PROTOCOL_HEADER, SERVED_PROTOCOLS
from shunter_work_pools.contracts.agents import LOG_MEDIA_TYPE, LOG_UPLOAD_LIMIT
from shunter_work_pools.contracts.errors import BadRequest, Forbidden, Refused, TooLarge, Unauthenticated
from shunter_work_pools.contracts.tasks import BYTES_MEDIA_TYPE
from shunter_work_pools.identities import REMEDY, Admission, Identities
from shunter_work_pools.queue.audit import Deed

Scope = dict[str, Any]

#: Bytes of a request body.
BODY_LIMIT = max(16 * 1024 * 1024, LOG_UPLOAD_LIMIT)
#: The same where nobody is asked who he is: room for a token. What strangers send is not even read beyond it.
OPEN_BODY_LIMIT = 64 * 1024
#: Names under which a server on this machine is always known.
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: Asked by load balancers and kubelets, which call a server by whatever address it has.
_HEALTH = frozenset({"/healthz", "/readyz", "/api/healthz", "/api/readyz"})
_OPEN = _HEALTH | {"/api/v1/sign-in"}
_AGENTS = "/api/v1/agents/"
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_PROTOCOL = PROTOCOL_HEADER.lower().encode()
_SERVED = frozenset(str(version).encode() for version in SERVED_PROTOCOLS)


def _spoken(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The protocol of an answer: the client's own, if it is served."""
    asked = next((value for name, value in scope["headers"] if name == _PROTOCOL), b"")
    return [(_PROTOCOL, asked if asked in _SERVED else str(PROTOCOL).encode())]


class Boundary:
    """ASGI middleware.

    Args:
        app: what is inside.
        identities: who has which token.
        hosts: names of this server, lower case, without port; ``*`` for any.
    """

    def __init__(self, app: Any, identities: Identities, hosts: frozenset[str]) -> None:
        self.app = app
        self.identities = identities
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            headers: dict[bytes, bytes] = dict(scope["headers"])
            if scope["path"] not in _HEALTH:
                self._check_host(scope)
            limit = OPEN_BODY_LIMIT if scope["path"] in _OPEN else BODY_LIMIT
            if scope["path"] not in _OPEN:
                answer.admission = scope["admission"] = await self._admit(scope, headers)
            counting = _check_body(scope, headers, limit)
        except Refused as refused:
            self._note(scope, refused)
            await refuse(refused, answer.send)
            return
        if counting:
            await self._counting(scope, receive, answer.send, limit)
        else:
            await self.app(scope, receive, answer.send)

    def _note(self, scope: Scope, refused: Refused) -> None:
        if refused.status in (401, 409, 429):  # 409: an agent's name that belongs to another one
            deed = Deed("", "", address_of(scope), "authenticate", scope["path"], refused.status)
            deed.detail["reason"] = refused.detail
            self.identities.refusals.note(deed)

    async def _counting(self, scope: Scope, receive: Any, send: Any, limit: int) -> None:
        """Let the application read what comes in, up to the limit; beyond it, its own answer is not sent."""
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise too_large(limit)
            return message

        async def unless_too_large(message: dict[str, Any]) -> None:
            if seen <= limit:
                await send(message)

        with contextlib.suppress(TooLarge):
            await self.app(scope, counted, unless_too_large)
        if seen > limit:
            await refuse(too_large(limit), send)

    def _check_host(self, scope: Scope) -> None:
        host = the_host(scope["headers"])
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name not in self.hosts and "*" not in self.hosts:
            raise Forbidden(
                f"this server does not answer to the Host {host!r}",
                "Start it with --allowed-host NAME if that is its name.",
            )
        refuse_foreign_pages(scope["method"], scope["headers"], host, self.hosts - LOCAL_HOSTS)

    async def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> Admission:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        token = given.strip()
        if scheme.lower() != b"bearer" or not token:
            raise Unauthenticated("the request has no token", REMEDY)
        return await self.identities.admit(token, address_of(scope), _agent_of(scope))


class _Answer:
    """What goes out: marked with the protocol; and nothing that nobody has permitted, or not any more.

    Attributes:
        admission: of who asks; None: nobody was asked.
    """

    def __init__(self, scope: Scope, send: Any) -> None:
        self.admission: Admission | None = None
        self._scope = scope
        self._send = send
        self._withheld = False

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI."""
        if message["type"] != "http.response.start":
            if not self._withheld:
                await self._send(message)
            return
        refused = self._refusal(message["status"])
        if refused is not None and not self._withheld:
            self._withheld = True
            await refuse(refused, _Answer(self._scope, self._send).send)
            return
        message["headers"] = [*message.get("headers", ()), *_spoken(self._scope)]
        await self._send(message)

    def _refusal(self, status: int) -> Refused | None:
        if self.admission is not None and self.admission.ended is not None:
            return Unauthenticated(self.admission.ended, REMEDY)
        if status < 400 and "permitted" not in self._scope:
            return Forbidden("nobody may do this: the route goes by no rule", "Report this, it is a bug.")
        return None


def _check_body(scope: Scope, headers: dict[bytes, bytes], limit: int) -> bool:
    """Whether the size of the body must be counted while it comes in.

    Raises:
        BadRequest, TooLarge: it is of a type that is not taken, or too large.
    """
    if scope["method"] not in _WRITES:
        return False
    length = headers.get(b"content-length")
    if length is None and b"transfer-encoding" not in headers:
        return False  # no body
    if length == b"0":
        return False
    media = headers.get(b"content-type", b"").split(b";")[0].strip().decode("latin-1").lower()
    if media not in ("application/json", LOG_MEDIA_TYPE, BYTES_MEDIA_TYPE):
        raise BadRequest(f"the body is of type {media or 'none'!r}", "Send JSON as application/json.")
    if length is None:
        return True
    if not length.isdigit() or int(length) > limit:
        raise too_large(limit)
    return False


def _agent_of(scope: Scope) -> str | None:
    """As which agent a request acts, by its path. None who only looks becomes one."""
    path: str = scope["path"]
    if scope["method"] != "POST":
        return None
    return path.removeprefix(_AGENTS).partition("/")[0] if path.startswith(_AGENTS) else None


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit, in bytes."""
    return TooLarge(f"the body is larger than {limit} bytes", "Send it in parts.")


async def refuse(refused: Refused, send: Any) -> None:
    """Answer with the problem document of a refusal."""
    body = json.dumps(refused.problem()).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if "retry_after" in refused.extra:
        headers.append((b"retry-after", str(refused.extra["retry_after"]).encode()))
    if isinstance(refused, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
