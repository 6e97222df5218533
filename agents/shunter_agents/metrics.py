"""``/metrics``, ``/healthz`` and ``/readyz`` of an agent, on a port of its own. Loaded only if there is one.

Health is whether the agent itself comes around, whatever is away: who asks would start it anew otherwise, in vain.
Ready is one that its server has accepted, and that would take a run now.

The requests are answered by threads; what they tell is looked at in the agent's event loop, so that nothing
changes meanwhile. An agent whose loop does not come to itself says so by not being healthy.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from shunter_agents.holdings import Holdings
from shunter_agents.tally import Distribution, Tally
from shunter_work_pools.contracts.capacity import DIVISIBLE
from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.daemon_log import get_logger

log = get_logger()
T = TypeVar("T")

#: Seconds in which the event loop must answer, and a client must send its request.
PATIENCE = 5.0


@dataclass(frozen=True)
class Sources:
    """Where the figures come from.

    Attributes:
        output_waiting: bytes of output that the server does not have yet.
        sync_age: seconds since a sync was answered; since the start if none was.
        well: whether the main loop comes around.
        troubles: why the agent takes nothing.
        unready: why it would take no run, for people; empty: it would.
    """

    holdings: Holdings
    tally: Tally
    output_waiting: Callable[[], int]
    sync_age: Callable[[], float]
    well: Callable[[], bool]
    troubles: Callable[[], list[str]]
    unready: Callable[[], str]


class MetricsPort:
    """Listens from the moment it is made; answers once :meth:`serve` was called.

    Args:
        host: an address of this machine, or a name of one; ``0.0.0.0`` or ``::`` for all.

    Raises:
        OSError: the port cannot be listened on.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = _Server6((host, port), _Handler) if ":" in host else _Server((host, port), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def serve(self, sources: Sources) -> None:
        """Answer from now on, in the running event loop's name."""
        registry = CollectorRegistry()
        registry.register(Figures(sources))
        ProcessCollector(registry=registry)
        loop = asyncio.get_running_loop()

        def in_loop(look: Callable[[], T]) -> T:
            found: concurrent.futures.Future[T] = concurrent.futures.Future()

            def now() -> None:
                try:
                    found.set_result(look())
                except Exception as exc:
                    found.set_exception(exc)

            loop.call_soon_threadsafe(now)
            return found.result(PATIENCE)

        self._server.pages = {
            "/metrics": lambda: (
                HTTPStatus.OK,
                CONTENT_TYPE_LATEST,
                in_loop(lambda: generate_latest(registry)),
            ),
            "/healthz": lambda: in_loop(lambda: _health(sources)),
            "/readyz": lambda: in_loop(lambda: _readiness(sources)),
        }
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


#: Status, media type, body.
Page = tuple[HTTPStatus, str, bytes]
_TEXT = "text/plain; charset=utf-8"


def _health(sources: Sources) -> Page:
    if not sources.well():
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"the main loop does not come around\n"
    lines = ["ok", *sources.troubles()]
    return HTTPStatus.OK, _TEXT, "".join(f"{line}\n" for line in lines).encode()


def _readiness(sources: Sources) -> Page:
    if why := sources.unready():
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{why}\n".encode()
    return HTTPStatus.OK, _TEXT, b"ok\n"


def _may_ask(host: str) -> bool:
    """Whether a request may ask under this name: that of a web page that was led here by its name is none of these.

    The address is any: kubelet and Prometheus ask for the pod's, which the agent does not know.
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    pages: Mapping[str, Callable[[], Page]] = {}

    def server_bind(self) -> None:
        """Without asking for the name of the address, as http.server does: that may take long, and nobody uses it."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks may hang up; anything else is a fault of ours."""
        if not isinstance(sys.exception(), OSError):
            log.exception("metrics cannot be told")


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if not _may_ask(self.headers.get("Host", "localhost")):
            self._answer(HTTPStatus.FORBIDDEN, _TEXT, b"ask for localhost or an address\n")
        elif page is None:
            self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"there are /metrics, /healthz and /readyz\n")
        else:
            try:
                self._answer(*page())
            except (TimeoutError, RuntimeError):  # it hangs, or has ended meanwhile
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"the agent does not come to itself\n")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of methods without a ``do_``, http.server says that they are not implemented; these are not allowed."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"GET it\n", Allow="GET")
        else:
            super().send_error(code, message, explain)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """What the header Server says."""
        return "shunter-agent"

    def log_message(self, format: str, *args: Any) -> None:
        """A request is nothing to tell of."""


class Figures(Collector):
    """What is measured, as it is when somebody asks. Label values are names of resources, states and causes."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Any]:
        """All of it."""
        yield from self._room()
        yield from self._attempts()
        yield from self._flow()

    def _room(self) -> Iterable[Any]:
        holdings = self._sources.holdings
        yield _gauge("slots", "Attempts that the agent may hold at once.", holdings.limit)
        yield _gauge("slots_in_use", "Those that it holds, or that still run.", holdings.slots_in_use())
        yield _by_resource("capacity", "What the agent has that runs may need.", holdings.capacity)
        free = holdings.free_capacity()
        yield _by_resource("capacity_free", "What of its capacity could be taken.", free)
        devices = {
            name: float(len(holdings.in_use(name))) for name in holdings.capacity if name not in DIVISIBLE
        }
        yield _by_resource("devices_in_use", "Devices that something runs on.", devices)

    def _attempts(self) -> Iterable[Any]:
        attempts = list(self._sources.holdings.attempts.values())
        by_state = GaugeMetricFamily(
            "shunter_agent_attempts",
            "Attempts that it has, those that have ended until all of them is with the server.",
            labels=["state"],
        )
        for state in AttemptState:
            by_state.add_metric([state.value], sum(attempt.state is state for attempt in attempts))
        yield by_state
        pending = sum(len(attempt.steps) for attempt in attempts if not attempt.dropped)
        yield _gauge("reports_pending", "Reports that the server has not acknowledged.", pending)
        yield _gauge(
            "output_waiting_bytes",
            "Output of runs that the server does not have yet.",
            self._sources.output_waiting(),
        )

    def _flow(self) -> Iterable[Any]:
        tally = self._sources.tally
        yield _gauge("sync_age_seconds", "Since the server last answered a sync.", self._sources.sync_age())
        yield _gauge(
            "troubles", "Reasons for which the agent takes nothing now.", len(self._sources.troubles())
        )
        starts = CounterMetricFamily("shunter_agent_starts", "Attempts that began to run.")
        starts.add_metric([], tally.starts)
        yield starts
        ends = CounterMetricFamily("shunter_agent_ends", "Attempts that ended.", labels=["state", "cause"])
        for (state, cause), count in sorted(tally.ends.items()):
            ends.add_metric([state, cause], count)
        yield ends
        yield _histogram(
            "launch_seconds", "From the assignment of an attempt to its first instruction.", tally.launches
        )
        yield _histogram(
            "loop_delay_seconds", "By how much the event loop came late to what was due.", tally.loop_delay
        )


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"shunter_agent_{name}", about, value=value)


def _by_resource(name: str, about: str, amounts: Any) -> GaugeMetricFamily:
    found = GaugeMetricFamily(f"shunter_agent_{name}", about, labels=["resource"])
    for resource, amount in sorted(amounts.items()):
        found.add_metric([resource], amount)
    return found


def _histogram(name: str, about: str, measured: Distribution) -> HistogramMetricFamily:
    return HistogramMetricFamily(
        f"shunter_agent_{name}", about, buckets=measured.buckets(), sum_value=measured.total
    )
