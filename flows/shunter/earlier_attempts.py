"""What earlier attempts of this run completed, as the server has it, wherever they ran."""

from __future__ import annotations

import json
from functools import partial
from hashlib import blake2b
from typing import Any

from shunter.errors import ServerAway, ServerRefused
from shunter.own_server import OwnServer, patiently
from shunter.results import NotKept

#: Seconds that a server which is away is waited for.
PATIENCE = 300.0
_PAGE = 1000
_NOT_FOUND = 404


class EarlierAttempts:
    """Completed runs by their keys, and their results.

    Raises:
        ServerAway: the server has not said what was completed. Nothing may be executed then, lest it is done twice.
        ServerRefused: it will not.
    """

    def __init__(self, server: OwnServer) -> None:
        self._server = server
        self.completed: dict[str, dict[str, Any]] = {}
        try:
            self._ask_all()
        except (ServerAway, ServerRefused) as exc:
            exc.args = (
                f"what earlier attempts of this run completed is not known, so nothing was executed: {exc}",
            )
            raise

    def _ask_all(self) -> None:
        after: str | None = None
        while True:
            query = {"after": after, "limit": _PAGE}
            ask = partial(self._server.ask, "GET", "tasks", query)
            page = json.loads(patiently(ask, PATIENCE, "going on")[0])
            for line in page["lines"]:
                self.completed[line.get("k", "")] = line
            after = page.get("next")
            if after is None:
                return

    def result(self, name: str) -> bytes:
        """A result that is in a file.

        Raises:
            NotKept: the server does not have it, or not as it was.
            ServerAway, ServerRefused: whether it has it is not known. Its task may not be executed then.
        """
        data, size = b"", 1
        while len(data) < size:
            ask = partial(self._server.ask, "GET", f"results/{name}", {"offset": len(data)})
            try:
                part, headers = patiently(ask, PATIENCE, "a result of an earlier attempt")
            except (ServerAway, ServerRefused) as exc:
                if isinstance(exc, ServerRefused) and exc.status == _NOT_FOUND:
                    raise NotKept(str(exc)) from None
                exc.args = (f"a result of an earlier attempt of this run cannot be had now: {exc}",)
                raise
            size = int(headers["Shunter-Result-Size"])
            if not part:
                break
            data += part
        if blake2b(data, digest_size=20).hexdigest() != name:
            raise NotKept(f"{len(data)} bytes came that are not what was kept")
        return data
