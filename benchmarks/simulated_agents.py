"""Thousands of agents in one process, that launch nothing: ``python -m benchmarks.simulated_agents --port ...``.

Each keeps one connection and speaks the real protocol over it, by hand, so that what is measured is the server:
it syncs, is held as long as a real agent is, says of what it is granted that it has ended, and syncs again.
Agent ``number`` serves pool ``p{number % pools}``, every third the next pool, too, and bears the tag
``site=s{number % sites}``.

On its standard output it says ``ready`` when the server has answered a first sync of every one and all are held
again, then for each assignment a line: the run, and when the bytes of the answer came in, nanoseconds of the
monotonic clock. It ends when its standard input does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from typing import Any, cast

from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.queue.ids import new_run_id

_NOTHING = b'"assignments":[]'
#: Agents that may be connecting at once; a listening socket's queue is bounded.
_CONNECTING = 100


class SimulatedAgent(asyncio.Protocol):
    """One agent: one request at a time, the next follows from the answer."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        pools = [number % fleet.pools, (number + 1) % fleet.pools][: 2 if number % 3 == 0 else 1]
        self._fleet = fleet
        self._session = str(new_run_id(time.time_ns() // 1000))
        about = {
            "protocol": PROTOCOL,
            "session": self._session,
            "identity": str(uuid.uuid4()),
            "pools": [f"p{pool}" for pool in pools],
            "tags": [f"site=s{number % fleet.sites}"],
            "limit": 8,
            "free": 8,
            "host": f"host-{number}",
            "version": "0",
        }
        self._name = f"sim-{number}"
        self._first = self._post("sync", about | {"hold_for": 0})
        self._sync = self._post("sync", about | {"hold_for": 10})
        self._answered: Any = self._met
        self._received = b""

    def _post(self, what: str, body: dict[str, Any]) -> bytes:
        data = json.dumps(body, separators=(",", ":")).encode()
        return (
            f"POST /api/v1/agents/{self._name}/{what} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {self._fleet.token}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        ).encode() + data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce itself."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._first)

    def data_received(self, data: bytes) -> None:
        """Gather an answer, and act on it."""
        at = time.monotonic_ns()
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        _, _, length = head.lower().partition(b"content-length:")
        if len(body) < int(length.partition(b"\r\n")[0]):
            return
        self._received = b""
        if not head.startswith(b"HTTP/1.1 200"):
            self._fleet.fail(f"{self._name}: {head.decode()} {body.decode()}")
        else:
            self._answered(body, at)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server never hangs up on an agent while these are measured."""
        self._fleet.fail(f"{self._name}: the connection is lost: {exc}")

    def _met(self, body: bytes, at: int) -> None:
        self._fleet.met()
        self._synced(body, at)

    def _synced(self, body: bytes, at: int) -> None:
        if _NOTHING in body:
            self._answered = self._synced
            self._transport.write(self._sync)
            return
        granted = json.loads(body)["assignments"]
        for one in granted:
            sys.stdout.write(f"{one['run']} {at}\n")
        sys.stdout.flush()
        reports = [
            {key: one[key] for key in ("run", "attempt", "epoch")}
            | {"seq": 3, "age": 0, "state": "Completed", "exit_code": 0, "log_size": 0}
            for one in granted
        ]
        self._answered = self._reported
        self._transport.write(self._post("reports", {"session": self._session, "reports": reports}))

    def _reported(self, body: bytes, at: int) -> None:
        self._answered = self._synced
        self._transport.write(self._sync)


class Fleet:
    """All of them."""

    def __init__(self, port: int, token: str, count: int, pools: int, sites: int) -> None:
        self.port, self.token, self.count, self.pools, self.sites = port, token, count, pools, sites
        self._to_meet = count
        self._room = asyncio.Semaphore(_CONNECTING)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def met(self) -> None:
        """One more has been answered."""
        self._room.release()
        self._to_meet -= 1
        if not self._to_meet:
            print("ready", flush=True)

    def fail(self, reason: str) -> None:
        """Something is not as it must be."""
        if not self._ended.done():
            self._ended.set_exception(RuntimeError(reason))

    async def live(self) -> None:
        """Until standard input ends.

        Raises:
            RuntimeError: a connection was lost, a request refused.
        """
        loop = asyncio.get_running_loop()
        for number in range(self.count):
            await self._room.acquire()
            await loop.create_connection(
                lambda number=number: SimulatedAgent(self, number),  # type: ignore[misc]
                "127.0.0.1",
                self.port,
            )
        loop.add_reader(sys.stdin.fileno(), self._over)
        await self._ended

    def _over(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def _live(given: argparse.Namespace, token: str) -> None:
    await Fleet(given.port, token, given.count, given.pools, given.sites).live()


def main() -> None:
    """The token comes as the first line of standard input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated_agents")
    for name in ("port", "count", "pools", "sites"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    token = sys.stdin.readline().strip()
    asyncio.run(_live(given, token))


if __name__ == "__main__":
    main()
