"""The ways in which a network, a gateway or a server can be away, or half away."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from tests.chaos.proxy import Exchange, Fault, Message

PAGE = b"<html><head><title>503</title></head><body><h1>Down for maintenance</h1></body></html>"


class Refuse(Fault):
    """Nobody listens."""

    name = "refused"
    cuts = True
    listens = False


class Reset(Fault):
    """RST at any byte: before the server has the request, or in the middle of its answer."""

    name = "reset"
    cuts = True

    async def treat(self, exchange: Exchange) -> None:
        if exchange.dice.random() < 0.5:
            data = (await exchange.deliver()).data
            await exchange.say(data[: exchange.dice.randrange(len(data))])
        exchange.reset()


class Status(Fault):
    """A gateway answers in the server's place."""

    cuts = True

    def __init__(self, status: str, headers: str = "", body: bytes = b"") -> None:
        self.name = status.split()[0]
        lines = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self._answer = lines.encode("ascii") + body

    async def treat(self, exchange: Exchange) -> None:
        await exchange.say(self._answer)


class Silence(Fault):
    """Half-open: what is sent arrives nowhere, and nothing ever comes back."""

    name = "half-open"
    mutes = True

    async def treat(self, exchange: Exchange) -> None:
        await exchange.until_hung_up()


class Swallow(Fault):
    """The server acts, and its answer never arrives; the connection stays open."""

    name = "swallowed"
    mutes = True


class Truncate(Fault):
    """The server acts; its answer ends in the middle: closed there, or said to be no longer."""

    name = "truncated"
    cuts = True

    async def treat(self, exchange: Exchange) -> None:
        answer = await exchange.deliver()
        short = answer.body[: exchange.dice.randrange(len(answer.body) or 1)]
        if exchange.dice.random() < 0.5:
            await exchange.say(answer.head + short)
        else:
            old, new = (b"content-length: %d" % len(body) for body in (answer.body, short))
            await exchange.say(answer.head.replace(old, new) + short)
        exchange.reset()


class Drip(Fault):
    """The answer comes byte by byte, and goes on so: no single wait is long, and it never ends."""

    name = "dripping"
    cuts = True

    def __init__(self, pause: float) -> None:
        self._pause = pause

    async def treat(self, exchange: Exchange) -> None:
        for byte in (await exchange.deliver()).data:
            await exchange.say(bytes([byte]))
            await asyncio.sleep(self._pause)


class Delay(Fault):
    """Request and answer take their time, up to ``most`` seconds each."""

    name = "delayed"

    def __init__(self, most: float) -> None:
        self._most = most

    async def treat(self, exchange: Exchange) -> None:
        await asyncio.sleep(exchange.dice.uniform(0, self._most))
        answer = await exchange.deliver()
        await asyncio.sleep(exchange.dice.uniform(0, self._most))
        await exchange.say(answer.data)


class Duplicate(Fault):
    """At least once: the server gets requests twice, and old ones again, much later."""

    name = "duplicated"
    kept = 50

    def __init__(self) -> None:
        self._seen: deque[Message] = deque(maxlen=self.kept)

    async def treat(self, exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            self._seen.append(exchange.request)
            exchange.deliver_beside(exchange.request)
            exchange.deliver_beside(exchange.dice.choice(self._seen))
        await exchange.say((await exchange.deliver()).data)


class WrongCertificate(Fault):
    """A TLS handshake that no client should go through with."""

    cuts = True

    def __init__(self, name: str, certificate: ssl.SSLContext) -> None:
        self.name = name
        self.certificate = certificate


class Mixture(Fault):
    """Each exchange has a fault of its own, most of them none."""

    name = "mixed"

    def __init__(self, *parts: tuple[float, Fault]) -> None:
        self._weights = [weight for weight, _ in parts]
        self._faults = [fault for _, fault in parts]

    async def treat(self, exchange: Exchange) -> None:
        (fault,) = exchange.dice.choices(self._faults, self._weights)
        exchange.note([f"mixed: {fault.name}"])
        await fault.treat(exchange)
