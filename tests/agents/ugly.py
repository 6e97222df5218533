"""A door in front of a real server that can be ugly in every way that networks and proxies are."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

from shunter_work_pools.contracts import PROTOCOL

_OURS = f"shunter-protocol: {PROTOCOL}\r\n"


def _answer(status: str, body: str = "", headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\ncontent-length: {size}\r\n{headers}\r\n{body}".encode()


#: What is answered to whatever is asked.
ANSWERS = {
    "500": _answer("500 Internal Server Error", "<html>oops</html>"),
    "500 of ours": _answer("500 Internal Server Error", '{"detail": "oops"}', _OURS),
    "502": _answer("502 Bad Gateway"),
    "429": _answer("429 Too Many Requests", headers="retry-after: 1\r\n"),
    "429 of ours": _answer("429 Too Many Requests", '{"detail": "slowly"}', f"retry-after: 1\r\n{_OURS}"),
    "truncated": _answer("200 OK", '{"protocol"', _OURS, length=400),
    "not JSON": _answer("200 OK", "<html>maintenance</html>", _OURS),
    "another body": _answer("200 OK", '{"surprise": []}', _OURS),
    "a list": _answer("200 OK", "[]", _OURS),
    "not UTF-8": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + _OURS.encode() + b"\r\n\xff\xfe",
    "bad compression": _answer("200 OK", "no gzip", f"content-encoding: gzip\r\n{_OURS}"),
    "a redirect to itself": _answer("302 Found", headers=f"location: /\r\n{_OURS}"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"x-more: " + b"y" * 200_000,
}
#: Those that say that there is no server of ours at all.
STRANGERS = {
    "a stranger": _answer("200 OK", "<html>hello</html>"),
    "a stranger's redirect": _answer("302 Found", headers="location: /\r\n"),
    "another protocol": _answer("200 OK", "{}", "shunter-protocol: 99\r\n"),
}
#: Ways to be away without a word.
SILENT = ("refused", "reset", "half open", "closed", "trickle")


class Door:
    """Lets everything through to a port of this machine, or does what :attr:`way` says.

    Attributes:
        way: a key of :data:`ANSWERS` or :data:`STRANGERS`, one of :data:`SILENT`, or "" to let through.
        asked: requests that came while it was ugly.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.way = ""
        self.asked = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.turn("refused")

    async def turn(self, way: str) -> None:
        """Be so from now on. Connections from before end, but a half-open one is never heard of again."""
        former, self.way = self.way, way
        if way == "refused" and self._server is not None:
            self._server.close()
            self._server = None
        if former != "half open":
            for writer in list(self._open):
                writer.transport.abort()
        if way != "refused" and self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_port=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self.way:
                await self._be_ugly(reader, writer)
            else:
                await self._let_through(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # of a connection that nobody waits for: asyncio would complain of one that is cancelled
        finally:
            self._open.discard(writer)
            writer.close()

    async def _be_ugly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = self.way
        await reader.readuntil(b"\r\n")
        self.asked += 1
        if way == "reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif way == "half open":
            await asyncio.sleep(3600)
        elif way == "trickle":
            for byte in _answer("200 OK", "{}", _OURS):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.5)
        elif way != "closed":
            writer.write((ANSWERS | STRANGERS)[way])
            await writer.drain()

    async def _let_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._open.add(back)
        pumps = [
            asyncio.ensure_future(_pump(reader, back)),
            asyncio.ensure_future(_pump(there, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._open.discard(back)
            back.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
