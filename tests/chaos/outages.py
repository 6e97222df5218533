"""The server is away in every ugly way at once, each with a proxy, two pools and two agents of its own.

One agent has runs when the outage begins; the other is started into it. Some runs end while nobody hears of
it, some live through it, some are made meanwhile. All outages run side by side, since most of it is waiting.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from shunter_work_pools.contracts.deployments import DeploymentSpec, Work
from shunter_work_pools.contracts.pools import PoolSpec
from shunter_work_pools.contracts.runs import Run, RunRequest
from tests.agents.real_server import Site, site
from tests.chaos.faults import (
    PAGE,
    Delay,
    Drip,
    Duplicate,
    Refuse,
    Reset,
    Silence,
    Status,
    Swallow,
    Truncate,
    WrongCertificate,
)
from tests.chaos.proxy import Fault, Proxy, proxy
from tests.patience import SOON

NAME = "shunter.test"
RESOLVER = Path(__file__).parent / "names"

#: Prints counted lines until the gate (a file) is open, twenty more, and ends as it is told.
SCRIPT = """
echo "$SHUNTER_RUN_ID $SHUNTER_ATTEMPT $$" >> "$1"
i=0; over=0
while [ $over -lt 20 ]; do
    i=$((i+1)); echo "line $i"
    if [ -e "$2" ]; then over=$((over+1)); else sleep 1; fi
done
echo "end $i"
eval "$3"
"""
#: How runs end -> state, cause, exit code, signal that are to be seen.
ENDS = {
    "exit 0": ("Completed", None, 0, None),
    "exit 7": ("Failed", "exit_code", 7, None),
    "kill -KILL $$": ("Crashed", "signal", None, "SIGKILL"),
}


class NoName(Fault):
    """The server's name does not resolve any more; what was connected is cut."""

    name = "no name"
    cuts = True


@dataclass
class Outage:
    """One way of being away, and what came of it.

    Attributes:
        agents: processes by name.
        runs: run id -> how it ends.
        waiting: those of them that began before the outage, and end after it.
        born: those that were made while the server was away.
        gone: agents that exited although nobody asked them to.
        killed: those of ``waiting`` whose process was not there any more when the outage ended.
        ended, outputs: of runs that ended at all.
        treated: exchanges that met the fault.
        back: when the outage ended.
        recovered: seconds from the end of the outage until the last end was known.
    """

    fault: Fault
    proxy: Proxy
    env: dict[str, str]
    names: Path
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    born: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    ended: dict[str, Run] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)
    treated: int = 0
    back: datetime | None = None
    recovered: float = 0.0

    def begin(self) -> None:
        """The server is away."""
        if isinstance(self.fault, NoName):
            self.names.write_text("{}")
        self.proxy.begin(self.fault)

    def end(self) -> None:
        """It is back."""
        self.treated = self.proxy.counts[self.fault.name]
        self.back = datetime.now(UTC)
        self.names.write_text(json.dumps({NAME: "127.0.0.1"}))
        self.proxy.begin(Fault())

    @property
    def away(self) -> bool:
        """Whether nothing at all comes through."""
        return not isinstance(self.fault, Delay | Duplicate)


class Certificates:
    """A certificate authority that agents trust, and certificates that they should not."""

    def __init__(self, folder: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.file = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.file))
        self.right = _context(authority.issue_cert("127.0.0.1"))
        past = datetime.now(UTC) - timedelta(days=1)
        self.expired = _context(authority.issue_cert("127.0.0.1", not_after=past))
        self.strange = _context(stranger.issue_cert("127.0.0.1"))
        self.other = _context(authority.issue_cert("elsewhere.test"))


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def faults(certificates: Certificates) -> dict[str, Fault]:
    """Every way of being away, by name."""
    all_of_them = [
        Refuse(),
        Reset(),
        Status("500 Internal Server Error"),
        Status("429 Too Many Requests", "Retry-After: 2\r\n"),
        Status("503 Service Unavailable", "Content-Type: text/html\r\n", PAGE),
        Silence(),
        Swallow(),
        Truncate(),
        Drip(0.5),
        Delay(1.5),
        Duplicate(),
        WrongCertificate("expired", certificates.expired),
        WrongCertificate("untrusted", certificates.strange),
        WrongCertificate("misnamed", certificates.other),
        NoName(),
    ]
    return {fault.name: fault for fault in all_of_them}


class Outages:
    """All of them, from beginning to end.

    Args:
        seconds: how long the server is away.
        patience: seconds after which what has not ended is given up.
    """

    def __init__(self, here: Site, seed: int, seconds: float, patience: float) -> None:
        self.here = here
        self.effects = here.home / "effects"
        self.effects.touch()
        self.gates = {name: here.home / f"gate-{name}" for name in ("early", "late")}
        self.all: dict[str, Outage] = {}
        self._seed = seed
        self._seconds = seconds
        self._patience = patience
        self._began = time.monotonic()

    def live(self) -> None:
        """Let it all happen."""
        with contextlib.ExitStack() as stack:
            self._set_up(stack)
            self._until_all_run()
            self._say("all run")
            for outage in self.all.values():
                outage.begin()
            began = time.monotonic()
            for outage in self.all.values():
                self._start_late(outage)
            # A third of the outage: the first ends are owed for the rest of it.
            self._go_on(began + self._seconds / 3)
            self.gates["early"].touch()
            self._go_on(began + self._seconds)
            self._look_for_the_living()
            self._say("the outages end")
            healed = time.monotonic()
            for outage in self.all.values():
                outage.end()
            self.gates["late"].touch()
            self._see_the_ends(healed)
            self._say("all have ended")
            self._read_outputs()
            self._drain()
            self._say("all agents are drained")

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s: {what}")

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        certificates = Certificates(self.here.home)
        for number, fault in enumerate(faults(certificates).values()):
            context = certificates.right if isinstance(fault, WrongCertificate) else None
            between = stack.enter_context(proxy(self.here.port, self._seed + number, context))
            url = between.url.replace("127.0.0.1", NAME) if isinstance(fault, NoName) else between.url
            names = self.here.home / f"names-{number}"
            names.write_text(json.dumps({NAME: "127.0.0.1"}))
            env = {
                "SHUNTER_API_URL": url,
                "SSL_CERT_FILE": str(certificates.file),
                "SHUNTER_TEST_NAMES": str(names),
                "PYTHONPATH": str(RESOLVER),
            }
            outage = self.all[fault.name] = Outage(fault, between, env, names)
            self._start_agent(outage, f"old-{number}")
            for how in ENDS:
                self._make_run(outage, f"old-{number}", "early", how)
                outage.waiting.add(self._make_run(outage, f"old-{number}", "late", how))

    def _start_agent(self, outage: Outage, name: str) -> None:
        self.here.client.create_pool(PoolSpec(name=name))
        outage.agents[name] = self.here.start_agent(name, pool=name, env=outage.env)

    def _start_late(self, outage: Outage) -> None:
        """An agent that is started while the server is away, and runs that are made meanwhile."""
        old = next(iter(outage.agents))
        new = old.replace("old", "new")
        self._start_agent(outage, new)
        for pool in (old, new):
            for how in ENDS:
                outage.born.add(self._make_run(outage, pool, "late", how))

    def _make_run(self, outage: Outage, pool: str, gate: str, how: str) -> str:
        deployment = f"{pool}-{gate}-{list(ENDS).index(how)}"
        command = ["sh", "-c", SCRIPT, "sh", str(self.effects), str(self.gates[gate]), how]
        # Away for longer than the server waits: `wait` is how a deployment says that it is worth waiting for.
        spec = DeploymentSpec(work=Work(command=command), pool=pool, on_lost="wait")
        self.here.client.deploy(deployment, spec)
        made = str(self.here.client.create_run(RunRequest(deployment=deployment)).id)
        outage.runs[made] = how
        return made

    def _until_all_run(self) -> None:
        deadline = time.monotonic() + self._patience
        for name, outage in self.all.items():
            for run in outage.runs:
                while self.here.client.get_run(run).state != "Running":
                    assert time.monotonic() < deadline, f"{name}: run {run} does not start"
                    time.sleep(0.05)

    def _go_on(self, until: float) -> None:
        """Nothing but time passes; whoever exits is noted."""
        while time.monotonic() < until:
            self._look_for_the_gone()
            time.sleep(0.25)

    def _look_for_the_gone(self) -> None:
        for outage in self.all.values():
            for name, process in outage.agents.items():
                if process.poll() is not None and name not in outage.gone:
                    outage.gone.append(name)

    def _look_for_the_living(self) -> None:
        began = dict(line.split()[::2] for line in self.effects.read_text().splitlines())
        for outage in self.all.values():
            outage.killed = [run for run in outage.waiting if not Path(f"/proc/{began[run]}").exists()]

    def _see_the_ends(self, healed: float) -> None:
        waiting = {run: outage for outage in self.all.values() for run in outage.runs}
        while waiting and time.monotonic() < healed + self._patience:
            for run, outage in list(waiting.items()):
                found = self.here.client.get_run(run)
                if found.ended_at is not None:
                    outage.ended[run] = found
                    outage.recovered = time.monotonic() - healed
                    del waiting[run]
            self._look_for_the_gone()
            time.sleep(0.2)

    def _read_outputs(self) -> None:
        deadline = time.monotonic() + self._patience
        for outage in self.all.values():
            for run in outage.ended:
                part = self.here.client.read_log(run)
                while not part.complete and time.monotonic() < deadline:
                    time.sleep(0.1)
                    part = self.here.client.read_log(run)
                outage.outputs[run] = part.data if part.complete else b"incomplete: " + part.data

    def _drain(self) -> None:
        for outage in self.all.values():
            for process in outage.agents.values():
                process.terminate()
        for outage in self.all.values():
            for name, process in outage.agents.items():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SOON)
                if process.poll() != 0:
                    outage.gone.append(f"{name}: exit code {process.poll()}")


@contextlib.contextmanager
def lived_through(home: Path, seed: int, seconds: float, patience: float = 90.0) -> Iterator[Outages]:
    """All outages, over."""
    with site(home, {"server.allowed_hosts": NAME}) as here:
        outages = Outages(here, seed, seconds, patience)
        outages.live()
        yield outages
