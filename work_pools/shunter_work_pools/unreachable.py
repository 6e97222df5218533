"""Why no server answers, and what to do about it: itself, its certificate, or the proxy on the way."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from shunter_work_pools.client_tls import IF_IT_WANTS_ONE, handshake
from shunter_work_pools.contracts.errors import ServerUnreachable
from shunter_work_pools.proxies import Proxy

if TYPE_CHECKING:
    import httpx

START_ONE = "Start one with `shunter server start`, or set SHUNTER_API_URL."


def unreachable(
    exc: httpx.RequestError | ssl.SSLError,
    api_url: str,
    proxy: Proxy | None,
    *,
    connect_timeout: float,
    answer_timeout: float,
) -> ServerUnreachable:
    """What a request that got no answer is to be told as.

    Args:
        proxy: by which it went; None: directly.
        connect_timeout, answer_timeout: seconds that were waited.
    """
    import httpx

    tls = handshake(exc)
    if tls is not None:
        wrong, remedy = tls
        return ServerUnreachable(f"no safe connection to {api_url}: {wrong}", remedy)
    if isinstance(exc, httpx.ProxyError):
        return refused_by(proxy, str(exc), api_url)
    if isinstance(exc, httpx.ConnectTimeout | httpx.PoolTimeout):
        reason = f"no connection within {connect_timeout:g} seconds"
    elif isinstance(exc, httpx.TimeoutException):
        reason = f"no answer within {answer_timeout:g} seconds"
    else:
        reason = str(exc) or type(exc).__name__
    if proxy is not None and isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerUnreachable(
            f"the proxy {proxy}, by which {api_url} is to be reached, cannot be reached itself: {reason}",
            f"Correct {proxy.variable}, or name the server in NO_PROXY if it is to be reached directly.",
        )
    if api_url.startswith("https://") and isinstance(exc, httpx.NetworkError | httpx.RemoteProtocolError):
        # Many servers say no more than that to who has no certificate, or one that they do not like.
        remedy = f"{START_ONE}\n{IF_IT_WANTS_ONE}"
    elif isinstance(exc, httpx.RemoteProtocolError):
        remedy = f"{START_ONE}\nIf it has a certificate, its address begins with https://."
    else:
        remedy = START_ONE
    through = f" by the proxy {proxy}" if proxy is not None else ""
    return ServerUnreachable(f"no server answers at {api_url}{through}: {reason}", remedy)


def refused_by(proxy: Proxy | None, answer: str, api_url: str, **extra: float) -> ServerUnreachable:
    """A forward proxy has answered in the server's place.

    Args:
        answer: its status in words, ``407 Proxy Authentication Required``.
        extra: ``retry_after``, if it said so.
    """
    variable = proxy.variable if proxy is not None else "the proxy's variable"
    if answer.startswith(("401", "407")):  # some say 401 of a password that is wrong
        remedy = f"Write user and password into {variable}: http://USER:PASSWORD@HOST:PORT."
    elif answer.startswith("403"):
        remedy = "It must allow this address (CONNECT to its port, where it begins with https://); or use NO_PROXY."
    else:
        remedy = "It does not reach the server: is that up, and its address right as the proxy sees it?"
    return ServerUnreachable(f"the proxy {proxy} on the way to {api_url} says: {answer}", remedy, **extra)
