"""Start a server and run it until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from shunter_work_pools.api.app import build_app
from shunter_work_pools.api.arrival import Arrival
from shunter_work_pools.api.boundary import LOCAL_HOSTS, Boundary
from shunter_work_pools.contracts.configuration import listening_port, load
from shunter_work_pools.contracts.errors import InvalidInput
from shunter_work_pools.contracts.exposure import check_exposure
from shunter_work_pools.contracts.home import Home, ensure_token, home_from_env
from shunter_work_pools.contracts.identities import PREFIXES
from shunter_work_pools.daemon_log import configure, get_logger
from shunter_work_pools.engine import Engine
from shunter_work_pools.secret_keys import load_secret_keys
from shunter_work_pools.server_tls import ServerTls, server_tls
from shunter_work_pools.service_manager import Condition, ServiceManager
from shunter_work_pools.settings import settings_of
from shunter_work_pools.storage.logs import FileLogStore
from shunter_work_pools.storage.results import FileResultStore
from shunter_work_pools.storage.store import open_store

if TYPE_CHECKING:
    from shunter_work_pools.sign_in import SignIn
    from shunter_work_pools.trust import Trusted

log = get_logger()

#: Seconds that requests under way are given when the server stops.
STOP_GRACE = 10
#: When the garbage collector looks at young, middle and old objects. What a held request is made of lives for
#: seconds and so becomes old, and each look at thousands of them, in vain, stops the server for tenths of a second.
COLLECT = (20_000, 20, 20)


def serve(flags: Mapping[str, object] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; held requests are answered at once then.

    Args:
        flags: names of settings (``server.port``) -> values that go before those of environment and file.

    Raises:
        ShunterError: a setting is wrong, a certificate cannot be used, others would reach it without TLS, the port is in use, the database cannot be used, the folder not
            be written.
    """
    manager = ServiceManager.of(os.environ)
    values = load(flags)
    configure(values)
    check_exposure(values)
    tls = server_tls(values)
    _allow_many_connections()
    listening = _listen(values["server.host"], listening_port(values))
    with contextlib.closing(listening), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(listening, values, manager, tls))


def _allow_many_connections() -> None:
    """Each agent keeps one open, and services begin with room for a thousand files: take what may be had."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit that it does not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError, UnicodeError) as exc:
        raise InvalidInput(f"{host!r} port {port} is no address to listen on: {exc}") from exc
    listening = socket.socket(family, kind, proto)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(1024)
    except OSError as exc:
        listening.close()
        if exc.errno == errno.EADDRINUSE:
            raise InvalidInput(
                f"port {port} of {host} is in use", "Stop what uses it, or choose another with --port."
            ) from exc
        raise InvalidInput(
            f"the server cannot listen on {host} port {port}: {exc.strerror}", "Choose another address."
        ) from exc
    return listening


async def _serve(
    listening: socket.socket, values: Mapping[str, Any], manager: ServiceManager, tls: ServerTls | None
) -> None:
    home, host = home_from_env(), values["server.host"]
    hosts = LOCAL_HOSTS | {name.lower() for name in [host, *values["server.allowed_hosts"]]}
    store = open_store(values["server.database_url"], home.database_file)
    secret_keys = load_secret_keys(values, home)
    sign_in, trusted = _sign_in(values), _trusted(values)
    logs = FileLogStore(home.logs)
    results = FileResultStore(home.results, values["server.results_limit"])
    engine = Engine(store, logs, results, settings_of(values), secret_keys, sign_in)
    engine.identities.verifiers = trusted
    await engine.start()
    try:
        engine.identities.admit_local(_own_token(values["token"], home))
        boundary = Boundary(build_app(engine), engine.identities, frozenset(hosts))
        config = uvicorn.Config(
            Arrival(boundary, values["server.trusted_proxies"], values["server.path_prefix"]),
            lifespan="off",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=STOP_GRACE,
            server_header=False,
            proxy_headers=False,  # uvicorn's own believes everybody on this machine
            ssl_context_factory=(lambda config, usual: tls.context) if tls is not None else None,
        )
        url = f"{'http' if tls is None else 'https'}://{host}:{listening.getsockname()[1]}/api"
        server = _Server(config, engine, manager, url)
        # What was made while starting stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)
        log.info("serving", url=url, store=engine.store.kind)
        serving = asyncio.create_task(server.serve(sockets=[listening]), name="http")
        ends: set[asyncio.Future[Any]] = {serving, engine.failure}
        if tls is not None:
            ends.add(asyncio.create_task(tls.keep_renewed(), name="certificate"))
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        for one in done:
            one.result()
    finally:
        await engine.stop()
        for one in (*trusted, *((sign_in,) if sign_in is not None else ())):
            await one.close()


def _own_token(given: str | None, home: Home) -> str:
    """By which an admin is let in: what is set, unless `shunter login` set it. That is somebody's key, of the role that it
    has, and as the server's own it would be an admin's that nobody can revoke."""
    if given is None:
        return ensure_token(home)
    if given.startswith(tuple(PREFIXES.values())):
        log.warning(
            "the token that is set is a key of somebody, and not taken for the server's own",
            own=str(home.token_file),
        )
        return ensure_token(home)
    return given


def _sign_in(values: Mapping[str, Any]) -> SignIn | None:
    """Loaded only where people sign in; so is the other below where accounts are trusted."""
    issuer, client_id = values["server.oidc_issuer"], values["server.oidc_client_id"]
    if (issuer is None) != (client_id is None):
        raise InvalidInput("server.oidc_issuer and server.oidc_client_id go together", "Set both, or none.")
    if issuer is None:
        return None
    from shunter_work_pools.sign_in import SignIn

    return SignIn(issuer, client_id, values["server.oidc_scopes"], values["server.oidc_roles"])


def _trusted(values: Mapping[str, Any]) -> tuple[Trusted, ...]:
    if not values["server.trust"]:
        return ()
    from shunter_work_pools.trust import Trusted

    return (Trusted(values["server.trust"]),)


class _Server(uvicorn.Server):
    """uvicorn, but held requests are answered before it waits for those under way."""

    def __init__(self, config: uvicorn.Config, engine: Engine, manager: ServiceManager, url: str) -> None:
        super().__init__(config)
        self.engine = engine
        self.manager = manager
        self.url = url

    def condition(self) -> Condition:
        """For the service manager."""
        return Condition(
            f"serving {self.url}: {len(self.engine.hub.agents)} agents connected",
            ready=self.started,
            stopping=self.should_exit,
            moved_at=self.engine.moved_at,
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        self.telling = asyncio.create_task(self.manager.keep_told(self.condition), name="service manager")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer, finish."""
        self.manager.tell(self.condition())
        self.engine.release_waiters()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """As uvicorn does, but the signal is not raised again at the end: stopping is not failing."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()
