"""``shunter up``: a server and an agent as two child processes that live and die together."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from shunter_cli.faults import FAILED, tell
from shunter_cli.output import say
from shunter_work_pools.contracts.errors import InvalidInput, ShunterError
from shunter_work_pools.contracts.home import home_from_env
from shunter_work_pools.contracts.settings import DEFAULT_PORT

POOL = "default"
#: Seconds until the server must be ready, and in which it must have stopped.
START_LIMIT, STOP_LIMIT = 30.0, 20.0


@dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
        host, port: where the server listens.
        limit: runs at once of the agent.
        server_words: further flags of the server.
        tags: of the agent.
        tls: the server speaks TLS.
        api_url: the setting; used if it speaks TLS, since a certificate is for names.
    """

    host: str
    port: int
    limit: int
    server_words: Sequence[str] = field(default_factory=list)
    tags: Sequence[str] = field(default_factory=list)
    tls: bool = False
    api_url: str = ""

    @property
    def address(self) -> str:
        """Where clients on this machine find it."""
        if self.tls and self.api_url.startswith("https://"):
            return self.api_url
        host = "127.0.0.1" if self.host in ("0.0.0.0", "") else "[::1]" if self.host == "::" else self.host  # nosec B104 # compared with, not listened on
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}/api"


def up(plan: Plan) -> int:
    """Run server and agent until told to stop, or until one of them ends.

    Returns:
        0 if both were stopped in order, 1 if one ended by itself or could not be stopped.

    Raises:
        InvalidInput: the port is in use.
    """
    plan = replace(plan, port=_free_port(plan))
    os.environ["SHUNTER_API_URL"] = plan.address
    return asyncio.run(_Up(plan).run())


def _free_port(plan: Plan) -> int:
    # A server already there would answer in place of the one that fails to start.
    with socket.socket(socket.AF_INET6 if ":" in plan.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
            return int(probe.getsockname()[1])
        except OSError as exc:
            raise InvalidInput(
                f"cannot listen on {plan.host} port {plan.port}: {exc.strerror or exc}",
                "Stop what listens there, or choose another --port.",
            ) from exc


class _Up:
    """Ends when: a signal says so; a child ends by itself; the server does not become ready."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stopping = asyncio.Event()
        self.children: dict[str, asyncio.subprocess.Process] = {}

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        try:
            return await self._serve()
        finally:
            await self._stop()

    async def _serve(self) -> int:
        plan = self.plan
        words = ["server", "start", "--host", plan.host, "--port", str(plan.port)]
        server = await self._spawn("server", *words, *plan.server_words)
        if not await self._ready(server):
            return FAILED if not self.stopping.is_set() else 0
        await asyncio.to_thread(_ensure_pool)
        tags = [word for tag in plan.tags for word in ("--tag", tag)]
        agent = await self._spawn(
            "agent", "agent", "start", "--pool", POOL, "--limit", str(plan.limit), *tags
        )
        if await self._serves(agent):
            self._welcome()
        ended = await self._first(server, agent)
        if ended is None:
            return 0
        name = "server" if ended is server else "agent"
        tell(f"Error: the {name} ended by itself ({_how(ended.returncode)}); stopping the rest.")
        return FAILED

    async def _spawn(self, name: str, *words: str) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shunter_cli.main", *words),
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,  # Ctrl-C comes to us alone; we pass it on in order
            preexec_fn=_dying_with_parent(),
        )
        self.children[name] = child
        return child

    async def _ready(self, server: asyncio.subprocess.Process) -> bool:
        from shunter_work_pools.client import AsyncClient

        deadline = asyncio.get_running_loop().time() + START_LIMIT
        async with AsyncClient(token="") as client:  # nosec B106 # no token: health needs none
            while server.returncode is None and not self.stopping.is_set():
                with suppress(ShunterError):
                    return await client.ready()
                if asyncio.get_running_loop().time() > deadline:
                    tell(f"Error: the server was not ready within {START_LIMIT:.0f} seconds")
                    return False
                await asyncio.sleep(0.05)
        return False  # it has said itself why it ended

    async def _serves(self, agent: asyncio.subprocess.Process) -> bool:
        """Whether the agent has been heard of since it was started; False if it ended instead."""
        from shunter_work_pools.client import AsyncClient

        begun = datetime.now(UTC)
        async with AsyncClient() as client:
            while agent.returncode is None and not self.stopping.is_set():
                with suppress(ShunterError):
                    agents = (await client.list_agents()).agents
                    if any(POOL in one.pools and one.last_seen_at >= begun for one in agents):
                        return True
                await asyncio.sleep(0.05)
        return False

    async def _first(self, *children: asyncio.subprocess.Process) -> asyncio.subprocess.Process | None:
        """The child that ended first; None if we were told to stop before."""
        ends = {asyncio.create_task(child.wait()): child for child in children}
        stop = asyncio.create_task(self.stopping.wait())
        done, waiting = await asyncio.wait([*ends, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return None if stop in done else ends[done.pop()]

    def _signalled(self) -> None:
        if self.stopping.is_set():  # again: the agent cancels its runs
            self._pass_on("agent", signal.SIGTERM)
            return
        self.stopping.set()

    async def _stop(self) -> None:
        """The agent first, as long as it needs; then the server it reports to."""
        agent, server = self.children.get("agent"), self.children.get("server")
        if agent is not None and agent.returncode is None:
            tell("Stopping: runs may finish; press Ctrl-C again to cancel them.")
            self._pass_on("agent", signal.SIGTERM)
            await agent.wait()
        if server is not None and server.returncode is None:
            self._pass_on("server", signal.SIGTERM)
            try:
                await asyncio.wait_for(server.wait(), STOP_LIMIT)
            except TimeoutError:
                tell(f"The server did not stop within {STOP_LIMIT:.0f} seconds; killed.")
                self._pass_on("server", signal.SIGKILL)
                await server.wait()

    def _pass_on(self, name: str, number: signal.Signals) -> None:
        child = self.children.get(name)
        if child is not None and child.returncode is None:
            with suppress(ProcessLookupError):
                child.send_signal(number)

    def _welcome(self) -> None:
        home = home_from_env()
        say(f"Shunter is up: {self.plan.address}")
        say(f"  home    {home.data}")
        say(f"  pool    {POOL}, served by an agent with {self.plan.limit} slots")
        if self.plan.port != DEFAULT_PORT:
            say(f"  in other terminals: export SHUNTER_API_URL={self.plan.address}")
        say("  stop with Ctrl-C")


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _ensure_pool() -> None:
    from shunter_work_pools.client import Client
    from shunter_work_pools.contracts.errors import Conflict
    from shunter_work_pools.contracts.pools import PoolSpec

    with Client() as client, suppress(Conflict):
        client.create_pool(PoolSpec(name=POOL))


def _dying_with_parent() -> Callable[[], None] | None:
    """What a child does between fork and exec, so that it gets SIGTERM if we die without a word (Linux)."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_parent_death_signal, signal.SIGTERM)
