"""What runs do to the world outside: each tells this server that it began and that it ends, and waits in between.

So it is counted, by somebody whom no agent and no server can deceive, how often the work of each run was done; and
what runs lasts exactly as long as a test wants.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: What a run writes before it waits, and after.
LINES = 200


class Effects:
    """How often each run began and ended; those that began wait until :meth:`go_on`.

    Args:
        address: of this machine, as pods reach it.
    """

    def __init__(self, address: str) -> None:
        self.began: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._open = threading.Event()
        self._server = _Server((address, 0), _Handler)
        self._server.effects = self

    @property
    def url(self) -> str:
        """Where it is told: ``URL/began/RUN`` and ``URL/ended/RUN``."""
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"http://{host}:{port}"

    @property
    def program(self) -> str:
        """Of a run, for ``python3 -c``: numbered lines, its two effects, and a result."""
        return f"""
import json, os, time, urllib.request
run = os.environ["SHUNTER_RUN_ID"]
for part, effect in enumerate(("began", "ended")):
    print(*range(part * {LINES} + 1, (part + 1) * {LINES} + 1), sep="\\n", flush=True)
    urllib.request.urlopen("{self.url}/" + effect + "/" + run).close()
with open(os.environ["SHUNTER_RESULT"], "w") as result:
    json.dump({{"run": run}}, result)
time.sleep(0.5)  # what is on its way at the end the node may lose
"""

    def wait_for(self, began: int, seconds: float = 120) -> None:
        """Wait until so many runs began in all.

        Raises:
            TimeoutError: they did not.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.began) >= began, seconds):
                raise TimeoutError(f"{len(self.began)} of {began} runs began in {seconds:g} s")

    def go_on(self) -> None:
        """Let all that wait go on, and all that come."""
        self._open.set()

    def hold(self) -> None:
        """Let what begins from now on wait."""
        self._open.clear()

    def _take(self, what: str, run: str) -> None:
        with self._changed:
            (self.began if what == "began" else self.ended)[run] += 1
            self._changed.notify_all()
        if what == "began":
            self._open.wait(300)


#: Of a run that was whole: every line once, in order.
OUTPUT = "".join(f"{number}\n" for number in range(1, 2 * LINES + 1)).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 200
    effects: Effects


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        _, what, run = self.path.split("/")
        self.server.effects._take(what, run)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: what matters is counted."""


@contextmanager
def listening(address: str) -> Iterator[Effects]:
    """The server, while it is wanted."""
    one = Effects(address)
    thread = threading.Thread(target=one._server.serve_forever, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.go_on()
        one._server.shutdown()
        one._server.server_close()
        thread.join()
