"""The server as a process: it starts, refuses to start, stops, and what it promised is still there."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from tests.api.serving import SOON, ServerProcess, server_process, until
from tests.engines.postgres import PostgresCluster
from tests.storage.stores import KINDS

BODY = {
    "protocol": 2,
    "session": str(UUID(int=100)),
    "identity": str(UUID(int=7)),
    "pools": ["main"],
    "limit": 10,
    "free": 10,
    "hold_for": 10,
}


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """Where the server keeps its data: an SQLite file in its home, or an empty Postgres database."""
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_database"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_asked_to_stop_it_answers_what_is_held_and_exits_0(tmp_path: Path, how: signal.Signals) -> None:
    with server_process(tmp_path / "home") as server:
        async with server.client() as http:
            assert (await http.post("/pools", json={"name": "main"})).status_code == 201
            syncing = asyncio.create_task(http.post("/agents/a1/sync", json=BODY))

            async def known() -> bool:
                return bool((await http.get("/agents")).json()["agents"])

            await until(known)
            await asyncio.sleep(0.1)  # it is held by now
            began = time.monotonic()
            stopping = asyncio.create_task(server.stop(how))
            response = await asyncio.wait_for(syncing, SOON)
            assert (response.status_code, response.json()["assignments"]) == (200, [])
            assert await stopping == 0, server.output
            assert time.monotonic() - began < SOON
        assert "Traceback" not in server.output


def test_it_takes_room_for_as_many_connections_as_it_may_have(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))  # as services begin, but with less
    try:
        with server_process(tmp_path / "home") as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_what_was_answered_survives_sigkill(tmp_path: Path, database_url: str) -> None:
    home = tmp_path / "home"
    with server_process(home, database_url) as server:
        async with server.client() as http:
            await http.post("/pools", json={"name": "main"})
            await http.put("/deployments/job", json={"work": {"command": ["x"]}, "pool": "main"})
            made = [(await http.post("/runs", json={"deployment": "job"})).json()["id"] for _ in range(20)]
            granted = (await http.post("/agents/a1/sync", json=BODY | {"free": 3})).json()["assignments"]
            assert len(granted) == 3
            report = {"attempt": 1, "epoch": 1, "seq": 1, "age": 0, "state": "Completed", "log_size": 0}
            reports = [report | {"run": one["run"]} for one in granted[:2]]
            body = {"session": BODY["session"], "reports": reports}
            assert (await http.post("/agents/a1/reports", json=body)).status_code == 200
        assert await server.stop(signal.SIGKILL) == -signal.SIGKILL
    with server_process(home, database_url) as server:
        async with server.client() as http:
            runs = {run["id"]: run["state"] for run in (await http.get("/runs?limit=100")).json()["runs"]}
            assert set(runs) == set(made)
            assert [runs[one["run"]] for one in granted] == ["Completed", "Completed", "Claimed"]
            # A report sent again after the answer may have been lost is acknowledged, not stale.
            await http.post("/agents/a1/sync", json=BODY | {"hold_for": 0, "taking": False})
            acks = (await http.post("/agents/a1/reports", json=body)).json()["acks"]
            assert [(ack["seq"], ack["stale"]) for ack in acks] == [(1, False)] * 2
            again = (await http.post("/agents/a1/sync", json=BODY | {"taking": False})).json()
            assert [one["run"] for one in again["assignments"]] == [granted[2]["run"]]
        assert await server.stop() == 0


async def test_the_token_and_the_data_are_for_the_user_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server_process(home) as server:
        assert (home / "token").stat().st_mode & 0o777 == 0o600
        token = (home / "token").read_text()
        assert home.stat().st_mode & 0o777 == 0o700
        await server.stop()
    with server_process(home) as server:
        assert (home / "token").read_text() == token
        assert token.strip() not in server.output
        await server.stop()


async def refuses(home: Path, *arguments: str) -> tuple[str, str]:
    """The type and detail of the error with which a server does not start."""
    program = (
        "import sys\n"
        "from shunter_work_pools.contracts.errors import ShunterError\n"
        "from shunter_work_pools.server import serve\n"
        "try:\n"
        "    serve({'server.port': sys.argv[1], 'server.database_url': sys.argv[2] or None})\n"
        "except ShunterError as exc:\n"
        "    print(type(exc).__name__, exc.detail, exc.remedy, sep='\\n')\n"
        "    sys.exit(3)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"SHUNTER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    kind, detail, remedy = done.stdout.splitlines()[-3:]
    assert remedy
    return kind, detail


async def test_a_port_in_use_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        kind, detail = await refuses(tmp_path / "home", str(port), "")
    assert kind == "InvalidInput"
    assert f"port {port}" in detail
    assert not (tmp_path / "home").exists()


async def test_a_database_that_is_none_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "shunter.db").write_bytes(b"recipes\n" * 1000)
    kind, detail = await refuses(home, "0", "")
    assert kind == "StoreError"
    assert "shunter.db" in detail
    assert (home / "shunter.db").read_bytes() == b"recipes\n" * 1000
    assert not (home / "token").exists()


async def test_a_second_server_on_one_home_is_told(tmp_path: Path) -> None:
    with server_process(tmp_path / "home") as server:
        kind, detail = await refuses(tmp_path / "home", "0", "")
        assert (kind, "another server" in detail) == ("StoreAway", True)
        async with server.client() as http:
            assert (await http.get("/server")).status_code == 200
        assert await server.stop() == 0


async def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kind, detail = await refuses(tmp_path / "file" / "home", "0", "")
    assert kind == "InvalidInput"
    assert "cannot be written" in detail


async def test_a_server_waits_for_postgres_that_went_away(tmp_path: Path, postgres_database: str) -> None:
    import asyncpg

    with server_process(tmp_path / "home", postgres_database) as server:
        async with server.client() as http:
            assert (await http.post("/pools", json={"name": "main"})).status_code == 201
            other = await asyncpg.connect(postgres_database.replace("+asyncpg", ""))
            for _ in range(3):
                await other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await asyncio.sleep(0.2)
            await other.close()

            async def back() -> bool:
                return (await http.get("/pools")).status_code == 200

            async def writes() -> bool:
                made = (await http.post("/pools", json={"name": "side"})).status_code
                assert made in (201, 503)  # that a connection of the pool was cut is noticed when it is used
                return made == 201

            await until(back)
            await until(writes)
        assert await server.stop() == 0


async def test_a_key_that_login_kept_is_not_the_servers_own_token(tmp_path: Path) -> None:
    """`shunter login` keeps a viewer's key in the profile that the server of this home reads, too."""
    first = ServerProcess(tmp_path)
    async with first.client() as http:
        key = (await http.post("/keys", json={"name": "ann", "role": "viewer"})).json()["token"]
    await first.stop()
    again = ServerProcess(tmp_path, env={"SHUNTER_TOKEN": key})
    try:
        async with again.client() as http:
            own = (await http.get("/whoami")).json()
            ann = (await http.get("/whoami", headers={"authorization": f"Bearer {key}"})).json()
    finally:
        await again.stop()
    assert (own["name"], own["role"]) == ("local", "admin")
    assert (ann["name"], ann["role"]) == ("ann", "viewer")
    assert "not taken for the server's own" in again.output


async def test_servers_that_start_at_once_on_an_empty_database(
    tmp_path: Path, postgres_database: str
) -> None:
    """Each is whole: schema, partitions, all of its loops."""
    homes = [tmp_path / f"home-{at}" for at in range(4)]
    starting = (asyncio.to_thread(ServerProcess, home, postgres_database) for home in homes)
    servers = await asyncio.gather(*starting, return_exceptions=True)
    try:
        for at, one in enumerate(servers):
            assert isinstance(one, ServerProcess), one
            async with one.client() as http:
                assert (await http.post("/pools", json={"name": f"p{at}"})).status_code == 201
                assert (await http.get(f"http://127.0.0.1:{one.port}/readyz")).status_code == 200
        assert [await one.stop() for one in servers if isinstance(one, ServerProcess)] == [0] * len(servers)
        outputs = [one.output for one in servers if isinstance(one, ServerProcess)]
        assert not any("died" in output for output in outputs)
        # Who begins when another one is done finds it there, and says nothing.
        assert any("has this version's schema now" in output for output in outputs)
    finally:
        for one in servers:
            if isinstance(one, ServerProcess) and one.process.poll() is None:
                one.process.kill()
                one.process.wait()


async def test_it_is_not_ready_while_its_database_hangs_or_is_away(
    tmp_path: Path, postgres_binaries: Path
) -> None:
    own = PostgresCluster(postgres_binaries)
    try:
        own.start()
        assert own._process is not None
        postmaster = psutil.Process(own._process.pid)
        with server_process(tmp_path / "home", own.url()) as server:
            async with server.client() as http:

                async def status(path: str = "/readyz") -> int:
                    return (await http.get(f"http://127.0.0.1:{server.port}{path}")).status_code

                assert await status() == 200
                stopped = [postmaster, *postmaster.children(recursive=True)]
                for one in stopped:
                    one.suspend()
                try:
                    assert await asyncio.wait_for(status(), 10) == 503
                    assert await status("/healthz") == 200
                finally:
                    for one in stopped:
                        one.resume()

                async def ready() -> bool:
                    return await status() == 200

                await until(ready, 20)
                await asyncio.to_thread(own.stop)
                assert await status() == 503
                assert await status("/healthz") == 200
            assert await server.stop() == 0
    finally:
        own.stop()
