"""The first process of the machine that the cluster believes it is alone on: starts, restarts and reaps.

It is process 1 of a pid namespace, so whatever the cluster started, down to the last container, ends with
it. It takes one request a connection on a socket: a JSON line ``{"do": ..., "name": ..., "argv": [...]}``,
answered by a JSON line ``{name: {"pid": ..., "wanted": ..., "starts": ...}}`` or ``{"error": ...}``.

``start`` runs a program and runs it again whenever it ends; ``stop`` kills it and leaves it so; ``kill``
kills it only. Nobody is asked to end kindly: a fault is what tests want.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

#: A program that ends sooner than this after its start is started again only then, in seconds.
SHORTEST_LIFE = 0.5


@dataclass
class Program:
    """One program of the cluster; ``pid`` 0 while it does not run."""

    argv: list[str]
    pid: int = 0
    wanted: bool = True
    starts: int = 0
    last_start: float = field(default=0.0)

    def run(self, log: Path) -> None:
        """Start it in a session of its own."""
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            # Not subprocess: it would reap behind our back.
            self.pid = os.posix_spawnp(
                self.argv[0],
                self.argv,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out, 1),
                    (os.POSIX_SPAWN_DUP2, out, 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE],
            )
        finally:
            os.close(out)
        self.starts += 1
        self.last_start = time.monotonic()


class Supervisor:
    """Runs until it is killed.

    Args:
        folder: the cluster's; has the socket, and ``logs/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: dict[str, Program] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "supervisor"))
        self._listener.listen(16)
        self._woken, waker = socket.socketpair()
        for end in (self._woken, waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the number is written to the waker
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._waker = waker
        self._selector.register(self._listener, selectors.EVENT_READ, self._answer)
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: self._woken.recv(4096))

    def run(self) -> None:
        """The loop: a request, an end of a child, or a start that is due."""
        while True:
            for key, _ in self._selector.select(self._start_due()):
                key.data()
            self._reap()

    def _start_due(self) -> float | None:
        """Start what should run and does not; seconds until the next start is due."""
        waits = []
        for name, program in self._programs.items():
            if program.pid or not program.wanted:
                continue
            wait = program.last_start + SHORTEST_LIFE - time.monotonic() if program.starts else 0
            if wait > 0:
                waits.append(wait)
            else:
                program.run(self._folder / "logs" / name)
        return min(waits, default=None)

    def _reap(self) -> None:
        """Every end: those of programs, and of containers' guardians that became orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, program in self._programs.items():
                if program.pid == pid:
                    program.pid = 0
                    print(f"{name} ended: {os.waitstatus_to_exitcode(status)}", flush=True)

    def _answer(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rw") as stream:
            line = stream.readline()
            if line:
                stream.write(json.dumps(self._do(**json.loads(line))) + "\n")

    def _do(self, do: str, name: str = "", argv: list[str] | None = None) -> dict[str, object]:
        known = self._programs.get(name)
        if do == "start" and known is None and argv:
            self._programs[name] = Program(argv)
        elif do == "start" and known is not None:
            known.wanted, known.argv = True, argv or known.argv
        elif do in ("stop", "kill") and known is not None:
            known.wanted = known.wanted and do == "kill"
            self._kill(known)
        elif do != "list":
            return {"error": f"cannot {do} {name!r}: known are {', '.join(self._programs)}"}
        self._start_due()
        return {
            name: {"pid": one.pid, "wanted": one.wanted, "starts": one.starts}
            for name, one in self._programs.items()
        }

    @staticmethod
    def _kill(program: Program) -> None:
        """Kill it and see it gone, so that who asked finds its ports and locks free."""
        if program.pid:
            os.kill(program.pid, signal.SIGKILL)
            os.waitpid(program.pid, 0)
            program.pid = 0


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1])).run()
