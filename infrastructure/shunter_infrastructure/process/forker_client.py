"""The agent's end of the forker: start it when needed, hand launches over, take the keepers' answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from shunter_infrastructure.launcher import LauncherUnavailable

_SCRIPT = Path(__file__).with_name("forker.py")
#: A launch that was handed over this often without an answer is given up.
_TRIES = 4
#: Seconds without an answer after which a launch is handed over again: its keeper may have been killed.
_PATIENCE = 5.0
#: Seconds in which a new forker must have said that it is ready.
_READY_WITHIN = 20.0
# macOS has no SOCK_SEQPACKET for AF_UNIX; messages are lines there as here, and short.
_KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM


@dataclass(frozen=True)
class Answer:
    """What a keeper said: ``record`` with its lines, ``withdrawn``, or ``refused`` or ``own`` with the reason."""

    kind: str
    detail: str


@dataclass
class _Launch:
    folder: str
    answer: asyncio.Future[Answer]
    secrets: int = -1
    tries: int = 0
    timer: asyncio.TimerHandle | None = None


class ForkerClient:
    """One forker at a time. A dead one is replaced, and what it had not answered is handed over again.

    That is harmless because launching is idempotent: the second keeper finds the record of the first.

    Args:
        python: interpreter of the forker.
    """

    def __init__(self, python: str) -> None:
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._received = b""
        self._unsent: list[tuple[bytes, _Launch]] = []
        self._launches: dict[int, _Launch] = {}
        self._token = 0
        self._ready: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the forker that runs now; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def ready(self) -> None:
        """Have a forker that works.

        Raises:
            LauncherUnavailable: none can be started.
        """
        if self._process is None:
            self._spawn()
        assert self._ready is not None
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), _READY_WITHIN)
        except TimeoutError:
            raise LauncherUnavailable(f"the forker did not come up within {_READY_WITHIN:.0f} s") from None

    async def launch(self, folder: Path, secrets: int = -1) -> Answer:
        """Have a keeper forked for the attempt in ``folder``, and wait for what it says.

        Args:
            secrets: descriptor of its secrets (``hidden.make``), if it has any; it stays the caller's.

        Raises:
            LauncherUnavailable: no forker can be started, or none lives long enough to answer.
        """
        if self._process is None:
            self._spawn()
        self._token += 1
        token = self._token
        launch = _Launch(str(folder), asyncio.get_running_loop().create_future(), secrets)
        self._launches[token] = launch
        try:
            self._hand_over(token, launch)
            return await launch.answer
        finally:
            del self._launches[token]
            launch.secrets = -1  # the number may be another file's soon; what is unsent goes without
            if launch.timer is not None:
                launch.timer.cancel()

    async def close(self) -> None:
        """Let the forker end; keepers go on. Launches that wait for an answer are refused."""
        self._closed = True
        process = self._process
        self._let_go()
        for launch in self._launches.values():
            _refuse(launch, "the launcher was closed")
        if process is not None:
            # It ends at once when it has read what is in the socket; never wait on it in the loop.
            await asyncio.to_thread(_reap, process)

    # -- the forker's life ---------------------------------------------------------------------------

    def _spawn(self) -> None:
        if self._closed:
            raise LauncherUnavailable("the launcher was closed")
        ours, theirs = socket.socketpair(socket.AF_UNIX, _KIND)
        try:
            self._process = subprocess.Popen(
                [self._python, "-I", "-S", "-X", "utf8", str(_SCRIPT), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C for the agent is not meant for what it runs
                env={},  # nothing of the agent's, its token above all, is visible there
                cwd="/",
            )
        except OSError as exc:
            ours.close()
            raise LauncherUnavailable(f"the forker could not be started with {self._python}: {exc}") from exc
        finally:
            theirs.close()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        self._socket = ours
        self._received = b""
        self._ready = loop.create_future()
        loop.add_reader(ours, self._read)
        with contextlib.suppress(OSError, AttributeError):
            # A stuck keeper holds the socket open; the forker's own end must be seen all the same.
            self._pidfd = os.pidfd_open(self._process.pid)
            loop.add_reader(self._pidfd, self._replace)

    def _let_go(self) -> str:
        """Forget the forker that is; what it said on stderr, if it failed early."""
        loop = asyncio.get_running_loop()
        words = ""
        if self._socket is not None:
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._socket.close()
        if self._pidfd >= 0:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        if self._process is not None and self._process.stderr is not None:
            os.set_blocking(self._process.stderr.fileno(), False)
            words = (self._process.stderr.read() or b"").decode(errors="replace").strip()
            self._process.stderr.close()
        self._socket, self._process, self._pidfd, self._unsent = None, None, -1, []
        return words

    def _replace(self) -> None:
        """The forker is dead: take its last answers, start another, hand over again what is open."""
        process, ready = self._process, self._ready
        assert process is not None
        assert ready is not None
        self._drain()
        words = self._let_go()
        process.kill()  # dead or dying; never two at once
        _reap(process)
        reason = f"the forker ended with status {process.returncode}" + (f": {words}" if words else "")
        if not ready.done():
            ready.set_exception(LauncherUnavailable(reason))
            ready.exception()  # seen, also if nobody waits
        open_ = {token: launch for token, launch in self._launches.items() if not launch.answer.done()}
        for token, launch in list(open_.items()):
            if launch.tries >= _TRIES:
                _refuse(launch, reason)
                del open_[token]
        if not open_:
            return  # the next launch starts one
        try:
            self._spawn()
        except LauncherUnavailable as exc:
            for launch in open_.values():
                _refuse(launch, exc.detail)
            return
        for token, launch in open_.items():
            self._hand_over(token, launch)

    # -- messages ------------------------------------------------------------------------------------

    def _hand_over(self, token: int, launch: _Launch) -> None:
        launch.tries += 1
        if launch.timer is not None:
            launch.timer.cancel()
        loop = asyncio.get_running_loop()
        launch.timer = loop.call_later(_PATIENCE, self._hand_over_again, token, launch)
        self._unsent.append((json.dumps([token, launch.folder]).encode() + b"\n", launch))
        if len(self._unsent) == 1:
            self._send()

    def _hand_over_again(self, token: int, launch: _Launch) -> None:
        if launch.answer.done():
            return
        if launch.tries >= _TRIES or self._process is None:
            _refuse(launch, f"no keeper answered within {launch.tries * _PATIENCE:.0f} s")
        else:
            self._hand_over(token, launch)

    def _send(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        while self._unsent:
            message, launch = self._unsent[0]
            try:
                if launch.secrets >= 0:
                    sent = socket.send_fds(self._socket, [message], [launch.secrets])
                else:
                    sent = self._socket.send(message)
            except BlockingIOError:
                loop.add_writer(self._socket, self._send)
                return
            except OSError:
                return  # it is dead; the reader is told, and everything open is handed over again
            rest = message[sent:]  # never empty only on a stream
            self._unsent[:1] = [(rest, launch)] if rest else []
        loop.remove_writer(self._socket)

    def _read(self) -> None:
        if not self._drain():
            self._replace()

    def _drain(self) -> bool:
        """Take in all answers that are there; False at the end of the stream."""
        assert self._socket is not None
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            *lines, self._received = (self._received + data).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        token, kind, detail = line.split("\t", 2)
        if kind == "ready":
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            return
        launch = self._launches.get(int(token))
        if launch is not None and not launch.answer.done():
            launch.answer.set_result(Answer(kind, detail))


def _refuse(launch: _Launch, reason: str) -> None:
    if not launch.answer.done():
        launch.answer.set_exception(LauncherUnavailable(reason, "The launch is tried again."))


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
