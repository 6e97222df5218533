"""A proxy between agents and server that does to their traffic what a :class:`Fault` says at this moment.

It lives in a thread of its own, listens on loopback only and reads whole HTTP messages, so that a fault can
happen at any byte of a request or answer, before or after the server has acted on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds to reach the server, which is on this machine: it is there or it is not.
CONNECT_LIMIT = 2.0


@dataclass(frozen=True)
class Message:
    """One HTTP request or answer, head and body as they came."""

    head: bytes
    body: bytes

    @property
    def data(self) -> bytes:
        """All of it."""
        return self.head + self.body

    @property
    def method(self) -> str:
        """Of a request."""
        return self.head.split(b" ", 1)[0].decode("ascii")


class Gone(Exception):
    """The other side has hung up."""


class Fault:
    """What becomes of an exchange. The base does nothing to it.

    Attributes:
        name: in reports.
        cuts: connections that there are when it begins are reset.
        mutes: nothing arrives at a client any more, also of what was asked before it began.
        listens: connections are taken at all.
        certificate: what is shown in place of the right one, where TLS is spoken.
    """

    name = "none"
    cuts = False
    mutes = False
    listens = True
    certificate: ssl.SSLContext | None = None

    async def treat(self, exchange: Exchange) -> None:
        """See one request to its answer."""
        await exchange.say((await exchange.deliver()).data)


class Exchange:
    """A request that a client has sent, and the ways to go on with it.

    Attributes:
        dice: of this proxy, seeded.
    """

    def __init__(self, proxy: Proxy, connection: Connection, request: Message) -> None:
        self._proxy = proxy
        self._connection = connection
        self.request = request
        self.dice = proxy.dice
        self.note = proxy.counts.update

    async def deliver(self) -> Message:
        """Give the request to the server; its answer.

        Raises:
            Gone: there is no server, it died over it, or the client hung up meanwhile.
        """
        return await self._connection.ask(self.request)

    def deliver_beside(self, request: Message) -> None:
        """Give a request to the server over a connection of its own; the answer reaches nobody."""
        self._proxy.ask_apart(request)

    async def say(self, data: bytes) -> None:
        """Send bytes to the client.

        Raises:
            Gone: it has hung up.
        """
        if self._proxy.fault.mutes:
            await self.until_hung_up()
        await self._connection.say(data)

    async def until_hung_up(self) -> None:
        """Say nothing until the client gives up.

        Raises:
            Gone: always, in the end.
        """
        await self._connection.hung_up()
        raise Gone

    def reset(self) -> None:
        """End the connection with a RST.

        Raises:
            Gone: always.
        """
        self._connection.reset()
        raise Gone


class Connection:
    """One client's connection, with one of its own to the server behind it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._behind: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._early = b""

    async def run(self) -> None:
        """Treat one request after the other."""
        try:
            while True:
                first = self._early or await self._reader.read(1)
                self._early = b""
                if not first:
                    return
                request = await _read_message(self._reader, first)
                fault = self._proxy.fault
                self._proxy.counts[fault.name] += 1
                await fault.treat(Exchange(self._proxy, self, request))
        except (Gone, OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._writer.transport.abort()
            self._drop_behind()

    async def ask(self, request: Message) -> Message:
        """See :meth:`Exchange.deliver`."""
        answering = asyncio.ensure_future(self._ask(request))
        leaving = asyncio.ensure_future(self.hung_up())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise Gone
            return answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _ask(self, request: Message) -> Message:
        try:
            if self._behind is None:
                self._behind = await self._proxy.connect()
            reader, writer = self._behind
            writer.write(request.data)
            await writer.drain()
            return await _read_message(reader)
        except (OSError, asyncio.IncompleteReadError) as exc:
            self._drop_behind()
            raise Gone from exc

    async def say(self, data: bytes) -> None:
        """See :meth:`Exchange.say`."""
        if self._writer.transport.is_closing():
            raise Gone
        self._writer.write(data)
        await self._writer.drain()

    async def hung_up(self) -> None:
        """Return when the client has closed; it sends nothing before it has its answer."""
        with contextlib.suppress(OSError):
            self._early += await self._reader.read(1)
        if self._early:
            await asyncio.Event().wait()  # it has not: the next request has begun

    def reset(self) -> None:
        """Close with a RST."""
        raw = self._writer.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def _drop_behind(self) -> None:
        if self._behind is not None:
            self._behind[1].transport.abort()
            self._behind = None


class Proxy:
    """Between agents and the server at ``target`` (a port of this machine).

    Args:
        seed: of all that is left to chance.
        certificate: speak TLS with it.

    Attributes:
        port: where it listens, also while it refuses.
        counts: how many exchanges each fault has treated.
    """

    def __init__(self, target: int, seed: int, certificate: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.dice = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.fault: Fault = Fault()
        self._certificate = certificate
        self._listening: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._apart: set[asyncio.Task[None]] = set()
        # Bound and never listening: it keeps the port for us while nobody listens there.
        self._port_holder = socket.socket()
        self._port_holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port_holder.bind(("127.0.0.1", 0))
        self.port: int = self._port_holder.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}", daemon=True)

    @property
    def url(self) -> str:
        """The API root, for agents."""
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self.port}/api"

    def begin(self, fault: Fault) -> None:
        """From now on this fault; ``Fault()`` heals."""
        self._do(self._begin(fault))

    def cut(self) -> None:
        """Reset every connection that there is."""
        self._do(self._cut())

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._do(self._listen())

    def close(self) -> None:
        """End every connection and the thread."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._port_holder.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _begin(self, fault: Fault) -> None:
        before, self.fault = self.fault, fault
        if fault.cuts:
            await self._cut()
        if (before.listens, before.certificate) != (fault.listens, fault.certificate):
            await self._listen()

    async def _listen(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self.fault.listens:
            certificate = self._certificate and (self.fault.certificate or self._certificate)
            self._listening = await asyncio.start_server(
                self._take, "127.0.0.1", self.port, ssl=certificate, reuse_address=True
            )

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = self._connections[task] = Connection(self, reader, writer)
        try:
            await connection.run()
        except asyncio.CancelledError:
            pass  # closing; what a callback of streams raises would only be logged
        finally:
            del self._connections[task]

    async def _cut(self) -> None:
        for connection in list(self._connections.values()):
            connection.reset()

    async def _close(self) -> None:
        if self._listening is not None:
            self._listening.close()
        tasks = [*self._connections, *self._apart]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server."""
        async with asyncio.timeout(CONNECT_LIMIT):
            return await asyncio.open_connection("127.0.0.1", self.target)

    def ask_apart(self, request: Message) -> None:
        """See :meth:`Exchange.deliver_beside`."""
        task = asyncio.ensure_future(self._ask_apart(request))
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)

    async def _ask_apart(self, request: Message) -> None:
        writer = None
        try:
            reader, writer = await self.connect()
            writer.write(request.data)
            await writer.drain()
            await _read_message(reader)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            if writer is not None:
                writer.transport.abort()


async def _read_message(reader: asyncio.StreamReader, first: bytes = b"") -> Message:
    head = first + await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        assert name.lower() != b"transfer-encoding", "agents and server send whole messages"
    return Message(head, await reader.readexactly(length))


@contextlib.contextmanager
def proxy(target: int, seed: int, certificate: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """A proxy that listens; closed at the end."""
    one = Proxy(target, seed, certificate)
    one.start()
    try:
        yield one
    finally:
        one.close()
