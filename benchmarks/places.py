"""A limit under sixteen claimers, on Postgres: it is never exceeded, and its places are never empty for long.

Two servers on one database, eight agents at each, which take one run at a time and hold it for 0.2 to 1 s. A
connection of its own counts the live leases under the limit a hundred times a second.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from typing import Any

from benchmarks.report import Table, percentile
from benchmarks.system import System, new_home, running
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.queue.ids import new_run_id

PLACES, CLAIMERS, SECONDS = 7, 16, 60.0
_SAMPLE_EVERY = 0.01
_WARM_UP = 2.0


class _Claimer:
    """An agent on one connection: takes a run, holds it, says that it has ended, takes the next."""

    def __init__(self, system: System, number: int, holding: list[int]) -> None:
        self._system, self._name, self._holding = system, f"claimer-{number}", holding
        self._session = str(new_run_id(time.time_ns() // 1000))
        self._identity = str(uuid.uuid4())
        self._chance = random.Random(number)
        self.most = 0
        self.taken = 0

    async def live(self) -> None:
        """Until it is cancelled."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._system.port)
        try:
            while True:
                for one in (await self._sync())["assignments"]:
                    self._holding[0] += 1
                    self.most = max(self.most, self._holding[0])
                    self.taken += 1
                    await asyncio.sleep(self._chance.uniform(0.2, 1.0))
                    self._holding[0] -= 1
                    end = {key: one[key] for key in ("run", "attempt", "epoch")} | {
                        "seq": 3,
                        "age": 0,
                        "state": "Completed",
                        "exit_code": 0,
                        "log_size": 0,
                    }
                    await self._post("reports", {"session": self._session, "reports": [end]})
        finally:
            self._writer.close()

    async def _sync(self) -> Any:
        body = {
            "protocol": PROTOCOL,
            "session": self._session,
            "identity": self._identity,
            "pools": ["default"],
        }
        return await self._post("sync", body | {"limit": 1, "free": 1, "hold_for": 10})

    async def _post(self, what: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        self._writer.write(
            f"POST /api/v1/agents/{self._name}/{what} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {self._system.token}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{what}: {answer.decode()}")
        return json.loads(answer)


async def _sample(url: str, seconds: float) -> list[int]:
    import asyncpg

    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    query = await connection.prepare("SELECT count(*) FROM lease_limits")
    found, loop = [], asyncio.get_running_loop()
    began = loop.time()
    while loop.time() < began + seconds:
        found.append(int(await query.fetchval()))
        await asyncio.sleep(_SAMPLE_EVERY)
    await connection.close()
    return found


async def _measure(systems: list[System], url: str, seconds: float) -> tuple[list[int], int, int]:
    """Samples, most runs that were held at once as the agents saw it, and how many were taken."""
    holding = [0]
    claimers = [_Claimer(systems[number % 2], number, holding) for number in range(CLAIMERS)]
    tasks = [asyncio.create_task(claimer.live()) for claimer in claimers]
    await asyncio.sleep(_WARM_UP)
    sampling = asyncio.create_task(_sample(url, seconds))
    done, _ = await asyncio.wait([sampling, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return sampling.result(), max(one.most for one in claimers), sum(one.taken for one in claimers)


def places(table: Table, seconds: float = SECONDS) -> None:
    """How many of a limit's places are taken, at every moment."""
    from tests.engines.postgres import PostgresCluster, find_binaries

    binaries = find_binaries()
    if binaries is None:
        table.note("Postgres was not found and not measured.")
        return
    cluster = PostgresCluster(binaries)
    try:
        cluster.start()
        with (
            cluster.database() as url,
            running(database_url=url, home=new_home()) as first,
            running(database_url=url, home=new_home()) as second,
        ):
            way = first.connect()
            way.post("/limits", {"name": "places", "max": PLACES})
            spec = {"work": {"command": ["/bin/true"]}, "pool": "default", "limits": ["places"]}
            way.request("PUT", "/deployments/job", spec)
            count = round((seconds + 2 * _WARM_UP) * PLACES / 0.6) + 100
            for begin in range(0, count, 500):
                runs = [{"deployment": "job"}] * min(500, count - begin)
                way.post("/runs/batch", {"runs": runs})
            samples, most, taken = asyncio.run(_measure([first, second], url, seconds))
    finally:
        cluster.stop()
    full = 100 * sum(sample == PLACES for sample in samples) / len(samples)
    table.row("most live leases at once", max(samples), "", PLACES)
    table.row("most runs at once, as the agents saw it", most, "", PLACES)
    table.row("share of the time with all 7 taken", full, "%", 95, at_least=True)
    table.row("lowest count, 1st percentile", percentile(samples, 1), "")
    table.note(f"{len(samples):,} counts in {seconds:.0f} s, {taken:,} runs taken.")
