"""How a request arrives: from whom in truth, by which scheme, below which prefix.

Behind proxies, what a connection says is about the last of them. What that one says of the request is believed if
it is one of ``server.trusted_proxies``, and of nobody else: these headers can be written by everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from shunter_work_pools.api.boundary import Scope


class Arrival:
    """ASGI middleware, the outermost: what is inside sees the true address in ``client``, and paths as they are.

    Args:
        app: what is inside.
        proxies: addresses and networks of those that are believed.
        prefix: what paths begin with where a proxy left it on, as ``/shunter``; without it they are taken, too.
    """

    def __init__(self, app: Any, proxies: Sequence[str] = (), prefix: str | None = None) -> None:
        self._app = app
        self._prefix = prefix
        self._told: Any = ProxyHeadersMiddleware(self._inside, list(proxies)) if proxies else self._inside

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """ASGI."""
        await self._told(scope, receive, send)

    async def _inside(self, scope: Any, receive: Any, send: Any) -> None:
        prefix = self._prefix
        if prefix is not None and scope["type"] == "http" and scope["path"].startswith(f"{prefix}/"):
            scope = dict(scope) | {"path": scope["path"].removeprefix(prefix)}
            scope["raw_path"] = scope["raw_path"].removeprefix(prefix.encode())
        await self._app(scope, receive, send)
