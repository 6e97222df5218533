"""The one tree of errors, and how they travel as ``application/problem+json`` (RFC 9457).

ShunterError                 anything Shunter says no to
├── Refused                  the server refused a request; subclasses carry a stable ``type``
│   ├── BadRequest           400 the request itself is wrong (names the field)
│   ├── Unauthenticated      401 no or wrong token
│   ├── Forbidden            403 Host or origin not allowed, or not for this one to do
│   ├── NotFound             404 no such run, deployment, pool, queue, agent
│   ├── Gone                 410 it was there, and was deleted as it need not be kept
│   ├── Conflict             409 the thing exists already, or its state does not allow this
│   │   ├── StaleEpoch       409 a write under a lease that is no longer held
│   │   └── NameInUse        409 another live agent has this name
│   ├── TooLarge             413 parameters, result or body over the limit
│   ├── TooManyRequests      429 too many in too short a time; ``retry_after`` says when to come again
│   ├── ProtocolMismatch     426 client and server speak other versions
│   └── Unavailable          503 the server is stopping or its store is away
├── ServerUnreachable        no answer from the server at all
├── InvalidInput             found wrong before anything was sent (a file, an expression, a flag)
└── StoreError               the database cannot be used (not one, newer schema, unwritable)
    └── StoreAway            ... now: it does not answer, or another server has it
"""

from __future__ import annotations

from typing import Any, ClassVar


class ShunterError(Exception):
    """Anything Shunter says no to: one sentence on what is wrong and where, one on what to do.

    Args:
        detail: what was wrong and where.
        remedy: what to do about it; empty if there is nothing to add.
    """

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy

    @property
    def told(self) -> str:
        """Both sentences, for where they stand in one line."""
        return f"{self.detail.rstrip('.')}. {self.remedy}" if self.remedy else self.detail


class ServerUnreachable(ShunterError):
    """No answer from the server: it is down, or the address is wrong.

    Args:
        detail, remedy: as for all.
        extra: ``retry_after``, seconds, if a proxy in front of the server asked to be left alone so long.
    """

    def __init__(self, detail: str, remedy: str = "", **extra: Any) -> None:
        super().__init__(detail, remedy)
        self.extra = extra


class InvalidInput(ShunterError):
    """Input that is wrong by itself, found before anything was sent or changed."""


class StoreError(ShunterError):
    """The database cannot be used as it is."""


class StoreAway(StoreError):
    """The database cannot be used now, and nothing says that it cannot be later."""


class Refused(ShunterError):
    """The server refused a request.

    Args:
        detail: what was wrong and where.
        remedy: what to do about it.
        extra: further members of the problem document (JSON values).

    Attributes:
        http_status: with which it was answered.
    """

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "refused"
    title: ClassVar[str] = "The request was refused"

    def __init__(self, detail: str, remedy: str = "", **extra: Any) -> None:
        super().__init__(detail, remedy)
        self.extra = extra
        self.http_status = self.status

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 document; ``remedy`` is an extension member."""
        body: dict[str, Any] = {
            "type": f"urn:shunter:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.remedy:
            body["remedy"] = self.remedy
        return body | self.extra


class BadRequest(Refused):
    """The request itself is wrong."""

    slug = "bad-request"
    title = "The request is not valid"


class Unauthenticated(Refused):
    """No token, or a wrong one."""

    status = 401
    slug = "unauthenticated"
    title = "A valid token is needed"


class AttemptOver(Unauthenticated):
    """The token is one of an attempt that has ended."""

    slug = "attempt-over"


class Forbidden(Refused):
    """The Host header is not one this server answers to, or who asks may not do this."""

    status = 403
    slug = "forbidden"
    title = "Not allowed"


class NotFound(Refused):
    """There is no such thing."""

    status = 404
    slug = "not-found"
    title = "Not found"


class Gone(Refused):
    """It was there, and was deleted as it need not be kept any more."""

    status = 410
    slug = "gone"
    title = "No longer there"


class Conflict(Refused):
    """The thing exists already, or its state does not allow this."""

    status = 409
    slug = "conflict"
    title = "In conflict with what is there"


class StaleEpoch(Conflict):
    """A write under a lease that is no longer held: whoever sent it must stop that work."""

    slug = "stale-epoch"
    title = "The lease is no longer held"


class NameInUse(Conflict):
    """Another live agent answers to this name."""

    slug = "agent-name-in-use"
    title = "The agent's name is in use"


class TooLarge(Refused):
    """More bytes than the limit."""

    status = 413
    slug = "too-large"
    title = "Too large"


class TooManyRequests(Refused):
    """More requests than may be; ``extra`` has ``retry_after``, seconds."""

    status = 429
    slug = "too-many-requests"
    title = "Too many requests"


class ProtocolMismatch(Refused):
    """Client and server speak versions of the protocol that do not fit."""

    status = 426
    slug = "protocol-mismatch"
    title = "Client and server speak different protocol versions"


class Unavailable(Refused):
    """The server is stopping, or cannot reach its store."""

    status = 503
    slug = "unavailable"
    title = "The server cannot serve this now"


class NoRoom(Unavailable):
    """The server is well, but where it keeps this it cannot write."""

    status = 507
    slug = "no-room"
    title = "The server cannot keep this now"


def _tree(cls: type[Refused]) -> list[type[Refused]]:
    return [cls] + [leaf for child in cls.__subclasses__() for leaf in _tree(child)]


_BY_TYPE = {f"urn:shunter:problem:{cls.slug}": cls for cls in _tree(Refused)}


def from_problem(status: int, body: dict[str, Any]) -> Refused:
    """The exception of a problem document; an unknown ``type`` becomes a plain :class:`Refused`."""
    known = {"type", "title", "status", "detail", "remedy"}
    cls = _BY_TYPE.get(str(body.get("type")), Refused)
    detail = str(body.get("detail") or body.get("title") or f"the server answered {status}")
    refused = cls(detail, str(body.get("remedy", "")), **{k: v for k, v in body.items() if k not in known})
    refused.http_status = status
    return refused
