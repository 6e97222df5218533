"""Answers of the engine that are read while they are written: events, output, and how a pull goes.

A connection each, on the event loop, no thread. HTTP/1.1 as far as the engine speaks it here; what ends without the
last chunk was broken off, and is told as such. (An HTTP library's price per chunk is paid for each line of output.)
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

#: Bytes that are read at once.
_PIECE = 256 * 1024


@dataclass(frozen=True)
class Address:
    """Where an engine listens.

    Attributes:
        path: of its socket; None: it listens at ``host`` and ``port``.
        tls: how its certificate is checked, and which is ours; None: no TLS.
    """

    path: str | None = None
    host: str = "docker"
    port: int = 0
    tls: ssl.SSLContext | None = None


class Broken(OSError):
    """The engine went away in the middle of an answer."""


class Answer:
    """What the engine says.

    Attributes:
        status: of HTTP.
        headers: names in small letters.
    """

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes; whole when this ends.

        Raises:
            Broken: it is not.
        """
        if self.headers.get("transfer-encoding") != "chunked":
            left = int(self.headers.get("content-length", 0))
            if left:
                yield await _read(self._reader.readexactly(left))
            return
        rest, last = b"", False
        while not last:
            new = await _read(self._reader.read(_PIECE))
            if not new:
                raise Broken("the answer was broken off")
            found, rest, last = _chunks(rest + new)
            if found:
                yield found

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines of the body."""
        rest = b""
        async for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line


def _chunks(data: bytes) -> tuple[bytes, bytes, bool]:
    """The contents of chunks that are whole, what is left over, and whether the last one was among them.

    https://www.rfc-editor.org/rfc/rfc9112#section-7.1
    """
    found, at = bytearray(), 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].partition(b";")[0], 16)
        begin = end + 2
        if size == 0:
            return bytes(found), b"", True
        if len(data) < begin + size + 2:
            break
        found += data[begin : begin + size]
        at = begin + size + 2
    return bytes(found), data[at:], False


@contextlib.asynccontextmanager
async def ask(
    address: Address,
    path: str,
    params: Mapping[str, str],
    patience: float,
    *,
    method: str = "GET",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Answer]:
    """Ask for something; who stops to read hangs up.

    Args:
        patience: seconds until the answer must have begun.

    Raises:
        OSError: the engine is away (``TimeoutError``: it does not answer).
    """
    async with asyncio.timeout(patience):
        if address.path is not None:
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    try:
        async with asyncio.timeout(patience):
            target = f"{path}?{urlencode(params)}" if params else path
            wanted = {"Host": address.host, "Connection": "close", "Content-Length": "0"} | dict(headers)
            lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in wanted.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
            answer = await _begin(reader)
        yield answer
    finally:
        writer.transport.abort()


async def _read(reading: Coroutine[Any, Any, bytes]) -> bytes:
    try:
        return await reading
    except (asyncio.IncompleteReadError, OSError) as exc:
        raise Broken("the answer was broken off") from exc


async def _begin(reader: asyncio.StreamReader) -> Answer:
    head = (await _read(reader.readuntil(b"\r\n\r\n"))).decode("latin-1")
    first, *rest = head.rstrip().split("\r\n")
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Answer(reader, int(first.split()[1]), headers)
