"""A thread that brings the journal to the server, in runs whose files nobody else can read (pods), or not before their end
(containers): ``journal.brought`` says how far it has come.

Lines go in batches, each after the results that it names; what has not gone when a pod is killed is lost with it.
At the end of the process it waits until everything is there. Where the server says that the attempt is over (its node was
silent, and given up), the flow is cancelled: another attempt may do the same by now.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from shunter.errors import AttemptOver, ServerAway, ServerRefused
from shunter.own_server import OwnServer, patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds between two looks at the journal.
LOOK = 0.3
#: Seconds that an ending process waits for a server that is away; and for one that never answered.
PATIENCE, DOUBT = 600.0, 30.0
#: Bytes in one request, and that one line may have.
UPLOAD, LONGEST = 1024 * 1024, 8 * 1024 * 1024
_PIECE = 4 * 1024 * 1024
_NEVER = "; runs call it as their agent does: let its SHUNTER_API_URL be an address that leads there from here, too"


class Bringer:
    """Brings the journal of this process.

    Args:
        path: the journal.
        server: that takes it.
    """

    def __init__(self, path: str, server: OwnServer) -> None:
        self._path = path
        self._server = server
        self._sent = 0
        self._brought: set[str] = set()
        self._answered = self._said = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shunter-journal", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the server has all that was written."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                last = self._ending.wait(LOOK)  # before reading: what was written until then is read
                while lines := self._next():
                    for name in _named(lines):
                        self._try_result(name)
                    self._bring(lines)
                if last:
                    return
        except AttemptOver as exc:
            _cancel(exc)
        except (ServerAway, ServerRefused, OSError) as exc:
            from shunter.loggers import get_logger

            get_logger("shunter").error(
                "the journal is not brought to the server any more (%s): what is done from here on will be done again if "
                "this run is retried",
                exc,
            )

    def _next(self) -> bytes:
        """Whole lines that the server does not have; nothing: there are none."""
        with open(self._path, "rb") as file:
            file.seek(self._sent)
            lines = file.read(UPLOAD)
            if len(lines) == UPLOAD and b"\n" not in lines:
                lines += file.read(LONGEST - UPLOAD)
        return lines if len(lines) == LONGEST else lines[: lines.rfind(b"\n") + 1]

    def _bring(self, lines: bytes) -> None:
        ask = partial(self._server.ask, "PUT", "journal", {"offset": self._sent}, lines)
        told = json.loads(self._patiently(ask))
        if told.get("full"):
            raise ServerRefused("it has reached its limit", 413)
        if told["size"] == self._sent:
            raise ServerRefused(f"it does not get beyond byte {self._sent} there", 409)
        self._sent = told["size"]
        # In a container whoever has started it can bring the rest when this process is dead.
        with suppress(OSError), open(f"{self._path}.brought", "w") as file:
            file.write(str(self._sent))

    def _try_result(self, name: str) -> None:
        if name in self._brought:
            return
        self._brought.add(name)
        try:
            self._bring_result(name)
        except AttemptOver:
            raise
        except (ServerRefused, OSError) as exc:
            from shunter.loggers import get_logger

            get_logger("shunter").warning(
                "the result %s is not brought to the server (%s): its task is executed again if this run is retried",
                name,
                exc,
            )

    def _bring_result(self, name: str) -> None:
        path = os.path.join(os.path.dirname(self._path), "results", name)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = 0
            while True:
                file.seek(at)
                ask = partial(
                    self._server.ask,
                    "PUT",
                    f"results/{name}",
                    {"offset": at, "size": size},
                    file.read(_PIECE),
                )
                told = json.loads(self._patiently(ask))
                if told.get("complete") or told["size"] == at:
                    break
                at = told["size"]

    def _patiently(self, ask: Callable[[], tuple[bytes, object]]) -> bytes:
        """The answer. While the run goes on a server that is away is waited for without end."""
        while True:
            ending = self._ending.is_set()
            limit = LOOK if not ending else PATIENCE if self._answered else DOUBT
            try:
                answer = patiently(ask, limit, "the end of this run")[0]
            except ServerAway as exc:
                told = ServerAway(f"{exc}{'' if self._answered else _NEVER}")
                if ending:
                    raise told from exc
                if not self._said:
                    self._said = True
                    from shunter.loggers import get_logger

                    get_logger("shunter").warning("the journal of this run waits for the server: %s", told)
                self._ending.wait(LOOK)
                continue
            self._answered = True
            return answer


def _cancel(why: AttemptOver) -> None:
    """Cancel the flow, unless that is being done already: a second SIGTERM would end it amid its hooks."""
    from shunter.loggers import get_logger

    get_logger("shunter").error("the flow is cancelled: %s", why)
    if callable(signal.getsignal(signal.SIGTERM)):
        os.kill(os.getpid(), signal.SIGTERM)


def _named(lines: bytes) -> Iterator[str]:
    for line in lines.split(b"\n"):
        if b'"f":' in line:
            try:
                result = json.loads(line).get("r")
            except (ValueError, AttributeError):
                continue
            if isinstance(result, dict) and "f" in result:
                yield result["f"]
