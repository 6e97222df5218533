"""A server that is away in every ugly way: no run is ended, nothing is lost, no agent ever ends for it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from shunter_agents import daemon, link
from shunter_agents.daemon import Agent, Fatal
from shunter_agents.link import SLOW_LIMIT, Backoff, Trouble, asked_delay, judge
from shunter_agents.options import Options
from shunter_agents.state_folder import StateFolder
from shunter_infrastructure.fake import FakeLauncher
from shunter_work_pools.client import AsyncClient
from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.errors import Refused, ServerUnreachable
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site
from tests.agents.ugly import ANSWERS, SILENT, STRANGERS, Door
from tests.patience import SOON

TOKEN = "a-token-of-the-tests"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "DENIED_DELAY", 0.5)
    monkeypatch.setattr(daemon, "SYNC_LIMIT", 4.0)


@asynccontextmanager
async def agent(root: Path, name: str, url: str, **client: Any) -> AsyncIterator[asyncio.Task[int]]:
    """An agent of this process that speaks to a url, and serves a pool of its own name."""
    folder = StateFolder(root, name)
    async with AsyncClient(url, TOKEN, **({"answer_timeout": 2.0} | client)) as http:
        options = Options(name=name, pools=[name], queues=[], limit=8, tags=[])
        task = asyncio.ensure_future(Agent(http, lambda kind: FakeLauncher(), folder, options).run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            folder.close()


@pytest.fixture
async def people(here: Site) -> AsyncIterator[AsyncClient]:
    """How people see the server meanwhile: directly, and not by threads, of which there are few."""
    async with AsyncClient(f"http://127.0.0.1:{here.port}/api", TOKEN) as client:
        yield client


async def made(people: AsyncClient, name: str, *words: str) -> str:
    """A run of the fake launcher's script, in the pool of that name."""
    if name not in [pool.name for pool in (await people.list_pools()).pools]:
        await people.create_pool(PoolSpec(name=name))
    await people.deploy(name, DeploymentSpec(work=Work(command=["fake", *words]), pool=name))
    return str((await people.create_run(RunRequest(deployment=name))).id)


async def running(people: AsyncClient, run: str) -> None:
    async with asyncio.timeout(SOON):
        while (found := await people.get_run(run)).state != "Running":
            await people.get_run(run, wait=2.0, seen=(found.state, found.attempt_count))


async def completed(people: AsyncClient, run: str, output: bytes) -> None:
    async with asyncio.timeout(SOON):
        while (ended := await people.get_run(run)).ended_at is None:
            await people.get_run(run, wait=2.0, seen=(ended.state, ended.attempt_count))
        assert (ended.state, ended.attempt_count) == ("Completed", 1), ended
        while not (part := await people.read_log(run, wait=1.0)).complete:
            continue
    assert part.data == output
    events = (await people.list_events(run)).events
    kinds = [event.kind for event in events if event.kind not in ("lost", "found", "late")]
    assert kinds == ["Scheduled", "Claimed", "Starting", "Running", "Completed"]


async def ended(people: AsyncClient, run: str) -> bool:
    return (await people.get_run(run)).ended_at is not None


async def in_all_ways(ways: list[str], body: Callable[[str], Awaitable[None]]) -> None:
    """All at once: most of it is waiting."""
    results = await asyncio.gather(*(body(way) for way in ways), return_exceptions=True)
    failed = {way: repr(result) for way, result in zip(ways, results, strict=True) if result is not None}
    assert not failed


def _named(way: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in way)


async def test_a_server_that_turns_ugly_while_runs_are_live(
    here: Site, people: AsyncClient, tmp_path: Path
) -> None:
    async def one(way: str) -> None:
        name = f"live-{_named(way)}"
        run = await made(people, name, "sleep=4", f"output={way}")
        async with (
            Door(here.port) as door,
            agent(tmp_path, name, f"http://127.0.0.1:{door.port}/api") as task,
        ):
            await running(people, run)
            await door.turn(way)
            await asyncio.sleep(5)  # it ends meanwhile
            assert not task.done(), way
            assert way == "refused" or door.asked > 0
            assert not await ended(people, run)
            await door.turn("")
            await completed(people, run, way.encode())
            assert not task.done()

    await in_all_ways([*ANSWERS, *STRANGERS, *SILENT], one)


async def test_a_server_that_is_ugly_when_the_agent_starts(
    here: Site, people: AsyncClient, tmp_path: Path
) -> None:
    async def one(way: str) -> None:
        name = f"start-{_named(way)}"
        run = await made(people, name, "output=x")
        async with Door(here.port) as door:
            await door.turn(way)
            async with agent(tmp_path, name, f"http://127.0.0.1:{door.port}/api") as task:
                await asyncio.sleep(3)
                assert not task.done(), way
                await door.turn("")
                await completed(people, run, b"x")

    await in_all_ways([*ANSWERS, *SILENT], one)


async def test_what_is_no_server_of_ours_ends_the_start_only(here: Site, tmp_path: Path) -> None:
    async def one(way: str) -> None:
        async with Door(here.port) as door:
            await door.turn(way)
            async with agent(tmp_path, _named(way), f"http://127.0.0.1:{door.port}/api") as task:
                with pytest.raises(Fatal, match=r"is not a Shunter server|speaks protocol 99"):
                    await asyncio.wait_for(asyncio.shield(task), 10)

    await in_all_ways(list(STRANGERS), one)


async def test_names_that_cannot_be_resolved(
    here: Site, people: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = socket.getaddrinfo, True

    def getaddrinfo(host: Any, *args: Any, **more: Any) -> Any:
        if host in ("localhost", b"localhost") and broken:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real("127.0.0.1" if host in ("localhost", b"localhost") else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    run = await made(people, "dns", "sleep=3", "output=x")
    async with Door(here.port) as door, agent(tmp_path, "dns", f"http://localhost:{door.port}/api") as task:
        await asyncio.sleep(1)
        assert not task.done()
        broken = False
        await running(people, run)
        broken = True
        await door.turn("closed")
        await door.turn("")
        await asyncio.sleep(3.5)
        assert not task.done()
        assert not await ended(people, run)
        broken = False
        await completed(people, run, b"x")


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"]
    subprocess.run(
        [*words, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True, timeout=30
    )
    return key, certificate


async def test_tls_that_fails(
    here: Site, people: AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No TLS at all, and a certificate that is not trusted: at the start, and later."""
    good, bad = _certificate(tmp_path, "good"), _certificate(tmp_path, "bad")
    monkeypatch.setenv("SSL_CERT_FILE", str(good[1]))
    run = await made(people, "tls", "sleep=3", "output=x")

    async with Door(here.port) as plain, _Tls(plain.port) as tls:
        await tls.show(bad)
        async with agent(tmp_path / "a", "tls", f"https://127.0.0.1:{tls.port}/api") as task:
            await asyncio.sleep(1)
            assert not task.done()
            await tls.show(None)
            await asyncio.sleep(0.5)
            assert not task.done()
            await tls.show(good)
            await running(people, run)
            await tls.show(bad)
            await asyncio.sleep(3.5)
            assert not task.done()
            assert not await ended(people, run)
            await tls.show(good)
            await completed(people, run, b"x")


class _Tls:
    """TLS with a certificate of choice in front of a port of this machine."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    async def __aenter__(self) -> _Tls:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def show(self, certificate: tuple[Path, Path] | None) -> None:
        """With this key and certificate from now on; None: no TLS is spoken."""
        await self._stop()
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate[1], certificate[0])
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        mine = {writer, back}
        self._open |= mine
        try:
            await asyncio.wait(
                [asyncio.ensure_future(_copy(reader, back)), asyncio.ensure_future(_copy(there, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._open -= mine
            back.transport.abort()
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass


# -- what errors mean


def _all_of(kind: type[httpx.HTTPError]) -> list[type[httpx.HTTPError]]:
    return [kind] + [leaf for child in kind.__subclasses__() for leaf in _all_of(child)]


@pytest.mark.parametrize("kind", _all_of(httpx.RequestError), ids=lambda kind: kind.__name__)
async def test_whatever_httpx_raises_is_a_server_that_is_away(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncClient("http://127.0.0.1:9/api", "x") as client:

        async def fail(**request: Any) -> httpx.Response:
            raise kind("it broke")

        monkeypatch.setattr(client._http, "request", fail)
        with pytest.raises(ServerUnreachable) as found:
            await client.get_pool("p")
    assert judge(found.value) is Trouble.AWAY


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLCertVerificationError("self-signed certificate"),
        ssl.SSLError("wrong version number"),
        socket.gaierror("no such name"),
        TimeoutError(),
        ConnectionResetError(),
        httpx.InvalidURL("whatever"),
        httpx.StreamClosed(),
        RuntimeError("something else"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_slips_through_is_one_as_well(error: Exception) -> None:
    assert judge(error) is Trouble.AWAY


def test_waits_grow_have_jitter_and_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(link.time, "monotonic", lambda: now)
    firsts = {Backoff().next() for _ in range(50)}
    assert len(firsts) > 40
    assert all(0.05 <= wait <= 0.3 for wait in firsts)
    long = Backoff()
    waits = []
    for _ in range(200):
        waits.append(long.next())
        now += waits[-1]
    assert max(waits[:20]) <= 1.5
    assert all(SLOW_LIMIT / 2 <= wait <= SLOW_LIMIT for wait in waits[-50:])
    assert len(set(waits[-50:])) > 40


def test_the_server_may_ask_to_be_left_alone_but_not_for_ever() -> None:
    assert asked_delay(Refused("slowly", retry_after=7)) == 7
    assert asked_delay(ServerUnreachable("a proxy", retry_after=7.5)) == 7.5
    assert asked_delay(ServerUnreachable("refused")) == 0
    assert Backoff().next(7) == 7
    assert Backoff().next(1e9) == 60
