"""What is refused because a browser sent it for a page of somebody else.

A page cannot make a browser send the token, and cannot read an answer, since no CORS header is ever given. So this
is a second lock: a write that a browser says it sends for another origin is refused, whatever it bears.
https://www.w3.org/TR/fetch-metadata/, https://www.rfc-editor.org/rfc/rfc6454
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from shunter_work_pools.contracts.errors import BadRequest, Forbidden

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def the_host(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The Host that a request names, lower case; empty: none.

    Raises:
        BadRequest: it names several, and who stands before this server may have looked at another one.
    """
    found = [value for name, value in headers if name == b"host"]
    if len(found) > 1:
        raise BadRequest("the request has more than one Host", "Send one.")
    return found[0].decode("latin-1").lower() if found else ""


def refuse_foreign_pages(
    method: str, headers: Iterable[tuple[bytes, bytes]], host: str, names: frozenset[str]
) -> None:
    """Refuse a write that a browser sends for a page that is not this server's.

    Args:
        host: of the request, as :func:`the_host` reads it.
        names: what else this server was said to be called, without port.

    Raises:
        Forbidden: it is one.
    """
    if method not in _WRITES:
        return
    for name, value in headers:
        if name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
            raise _foreign("Sec-Fetch-Site", value)
        if name == b"origin" and not _is_own(value, host, names):
            raise _foreign("Origin", value)


def _is_own(origin: bytes, host: str, names: frozenset[str]) -> bool:
    try:
        parts = urlsplit(origin.decode("latin-1").lower())
        return parts.scheme in ("http", "https") and (parts.netloc == host or parts.hostname in names)
    except ValueError:
        return False


def _foreign(header: str, value: bytes) -> Forbidden:
    shown = value.decode("latin-1")[:200]
    return Forbidden(
        f"a browser sent this for a page of another server ({header}: {shown!r})",
        "If it is this server's own page, let the proxy in front of it hand on Host, or name it: --allowed-host NAME.",
    )
