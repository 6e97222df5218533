"""What TLS and credentials add to the requests that agents make all the time, over connections that are kept."""

from __future__ import annotations

import hashlib
import secrets
import statistics
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trustme

from benchmarks.report import Table
from benchmarks.system import Connection, System, Tls, running
from shunter_work_pools.contracts import PROTOCOL

#: Rounds, and requests of each kind in a round, of each server in turn: what disturbs the machine disturbs both.
ROUNDS, REQUESTS = 20, 50


class Agent:
    """One that syncs and reports over one connection.

    Args:
        joined: with a credential of its own; else with the token of the server's home.
    """

    def __init__(self, system: System, *, joined: bool) -> None:
        self._admin: Connection = system.connect()
        self._way = self._join(system) if joined else self._admin
        self._session = str(uuid.uuid4())
        self._about = {
            "protocol": PROTOCOL,
            "session": self._session,
            "identity": str(uuid.uuid4()),
            "pools": ["default"],
            "limit": REQUESTS + 1,
            "free": REQUESTS,
            "hold_for": 0,
        }
        deployment = {
            "deployments": [{"name": "job", "spec": {"work": {"command": ["true"]}, "pool": "default"}}]
        }
        self._admin.post("/deployments", deployment)
        self._holds: list[Any] = []
        [held] = self._granted(1)
        self._holds = [_held(held)]

    def _join(self, system: System) -> Connection:
        invitation = self._admin.post("/invitations", {"pool": "default"})["token"]
        token = f"sha_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(token.encode()).hexdigest()
        joining = Connection(system.port, invitation, system.tls)
        joining.post("/join", {"name": "bench", "token_hash": digest})
        return Connection(system.port, token, system.tls)

    def sync(self, **more: Any) -> Any:
        """Ask, without being held unless that is said."""
        return self._way.post("/agents/bench/sync", self._about | more)

    def _granted(self, count: int) -> list[Any]:
        self._admin.post("/runs/batch", {"runs": [{"deployment": "job"} for _ in range(count)]})
        granted: list[Any] = []
        while len(granted) < count:
            holds = [*self._holds, *(_held(one) for one in granted)]
            granted += self.sync(free=count - len(granted), holds=holds, hold_for=10)["assignments"]
        return granted

    def syncs(self) -> float:
        """Seconds of a sync of one that holds a run, and has no room: answered at once. The median of a round."""
        return statistics.median(
            _timed(lambda: self.sync(free=0, holds=self._holds)) for _ in range(REQUESTS)
        )

    def reports(self) -> float:
        """Seconds of a report that ends a run, a commit each, the median of a round."""
        took = []
        for one in self._granted(REQUESTS):
            report = {key: one[key] for key in ("run", "attempt", "epoch")}
            report |= {"seq": 3, "age": 0, "state": "Completed", "exit_code": 0, "log_size": 0}
            body = {"session": self._session, "reports": [report]}
            took.append(_timed(lambda body=body: self._way.post("/agents/bench/reports", body)))  # type: ignore[misc]
        return statistics.median(took)


def _held(granted: Any) -> dict[str, Any]:
    return {key: granted[key] for key in ("run", "attempt", "epoch")} | {"stopping": False}


def _timed(ask: Any) -> float:
    begun = time.perf_counter()
    ask()
    return time.perf_counter() - begun


def security(table: Table) -> None:
    """Two servers side by side: one in the clear that knows its agent by the home's token, and one that speaks TLS and
    knows it by its credential; one connection to each."""
    with ExitStack() as stack:
        tls = _certificate(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        agents = [Agent(stack.enter_context(running(tls=one)), joined=one is not None) for one in (None, tls)]
        for name, ask in (("sync", Agent.syncs), ("report", Agent.reports)):
            rounds = [[ask(agent) for agent in agents] for _ in range(ROUNDS)]
            plain, safe = (statistics.median(each) for each in zip(*rounds, strict=True))
            added = statistics.median((after - before) / before * 100 for before, after in rounds)
            table.row(f"{name}, in the clear", plain * 1000, "ms")
            table.row(f"{name}, by TLS with a credential", safe * 1000, "ms")
            table.row(f"both add to a {name}", added, "%", 15)
    table.note(
        f"Medians of {ROUNDS} rounds of {REQUESTS} requests each, in turn, over one connection that is kept; the client "
        "is Python's, and shares the cores."
    )


def _certificate(folder: Path) -> Tls:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    found = Tls(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    found.key.touch(0o600)
    leaf.private_key_pem.write_to_path(str(found.key))
    found.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    authority.cert_pem.write_to_path(str(found.ca))
    return found
