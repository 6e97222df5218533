"""A real server whose clock stands still, with a little of everything in it: the same at every test run.

The time is a file that the server's process reads instead of its clock. What is in it was made through the
API, step by step, as people and an agent would have; then the clock stays at ``NOW``, and the command line
is told the same moment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from shunter_work_pools.client import Client
from shunter_work_pools.contracts import PROTOCOL
from shunter_work_pools.contracts.agents import Assignment, Held, LogFrame, Report, ReportBatch, SyncRequest
from shunter_work_pools.contracts.deployments import (
    CronSchedule,
    DeploymentPatch,
    DeploymentSpec,
    IntervalSchedule,
    RetryPolicy,
    Schedule,
    Work,
)
from shunter_work_pools.contracts.errors import ServerUnreachable
from shunter_work_pools.contracts.limits import LimitSpec, Rate
from shunter_work_pools.contracts.log_frames import encode_frames
from shunter_work_pools.contracts.pools import PoolPatch, PoolSpec, QueueSpec
from shunter_work_pools.contracts.runs import RunRequest
from shunter_work_pools.contracts.secrets import FromAgent, FromSecret, SecretValue
from shunter_work_pools.contracts.states import AttemptState, Cause
from tests.cli.console import Console, Done, console, free_port, stop, until

#: A Sunday, at noon.
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

_SERVER = """
import sys, time
from pathlib import Path
clock = Path(sys.argv[2])
time.time_ns = lambda: int(clock.read_text())
from shunter_work_pools import engine
engine.heartbeat = engine.note_seen = lambda tx, ago: None  # their age is of a clock that does not stand still
from shunter_cli.main import main
sys.exit(main(["server", "start", "--port", sys.argv[1]]))
"""

_SHUNTER = f"""
import sys, datetime
from shunter_cli import durations
durations.now = lambda: datetime.datetime.fromisoformat({NOW.isoformat()!r})
from shunter_cli.main import main
sys.exit(main())
"""

_SESSION = UUID(int=100)
#: Of agent a1.
_HAS: dict[str, float] = {"cpu": 8.0, "gpu": 2.0, "memory": 16_374_562_816.0}
_FOUND = ["os=linux", "arch=x86_64", "cpus=8", "memory=15GiB", "gpu", "gpu=2"]
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass
class World:
    """The server, and the runs that are in it by the names that tests know them by."""

    shunter: Console
    client: Client
    clock: Path
    port: int
    runs: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, columns: int = 80) -> Done:
        """Run ``shunter WORDS`` at the moment at which the clocks stand; ``{name}`` is a run's id."""
        named = [self.runs[word[1:-1]] if word.startswith("{") else word for word in words]
        terminal = self.shunter.having(COLUMNS=str(columns), LINES="24")
        return terminal.execute([sys.executable, "-c", _SHUNTER, *named])

    def at(self, **before: float) -> None:
        """Set the clock so long before ``NOW``."""
        moment = NOW - timedelta(**before)
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(str(int(moment.timestamp()) * 1_000_000_000))
        os.replace(fresh, self.clock)

    def steady(self, text: str) -> str:
        """Output without what differs from server to server, in the same width."""
        numbers = {run: f"{number:012}" for number, run in enumerate(self.runs.values(), 1)}
        text = _UUID.sub(lambda found: f"00000000-0000-7000-8000-{numbers[found[0]]}", text)
        text = re.sub(r"\b[0-9a-f]{12}7[0-9a-f]{19}\b", "0" * 32, text)
        for run, number in numbers.items():
            text = text.replace(run[-8:], number[-8:])
        text = re.sub(r"[0-9.]+ [KM]iB, up \w+", "1.0 MiB, up 3d", text)
        return text.replace(f":{self.port}/", ":44000/")

    # ---- making it

    def sync(
        self,
        name: str,
        *held: Assignment,
        free: int = 8,
        hold_for: float = 0,
        session: UUID = _SESSION,
        troubles: list[str] | None = None,
    ) -> list[Assignment]:
        """What the agent is given; in a new session it is written down that it was seen."""
        request = SyncRequest(
            protocol=PROTOCOL,
            session=session,
            identity=UUID(int=sum(name.encode())),
            pools=["default"],
            limit=8,
            free=free,
            tags=["ssd"],
            found_tags=_FOUND if name == "a1" else [],
            capacity=_HAS if name == "a1" else {},
            free_capacity=_HAS if name == "a1" else {},
            holds=[Held(run=one.run, attempt=one.attempt, epoch=one.epoch) for one in held],
            hold_for=hold_for,
            taking=not troubles,
            troubles=troubles or [],
            host=f"{name}.example.org",
            version="0.1.0",
        )
        return self.client.sync(name, request).assignments

    def start(self, name: str, deployment: str, **request: object) -> None:
        """Make a run that is known as ``name``."""
        made = self.client.create_run(RunRequest.model_validate({"deployment": deployment, **request}))
        self.runs[name] = str(made.id)

    def take(self) -> Assignment:
        """The attempt that waits, given to agent a1 and running."""
        (given,) = self.sync("a1", hold_for=10)
        self.report(given, 1, AttemptState.STARTING)
        self.report(given, 2, AttemptState.RUNNING, pid=4711)
        return given

    def report(self, given: Assignment, seq: int, state: AttemptState, **more: object) -> None:
        """A step of an attempt."""
        step = {"run": given.run, "attempt": given.attempt, "epoch": given.epoch, "seq": seq, "age": 0}
        report = Report.model_validate(step | {"state": state} | more)
        self.client.report("a1", ReportBatch(session=_SESSION, reports=[report]))

    def write(self, given: Assignment, data: bytes) -> None:
        """Output of an attempt."""
        frame = LogFrame(run=given.run, attempt=given.attempt, epoch=given.epoch, offset=0, length=len(data))
        self.client.upload_logs("a1", encode_frames([(frame, data)]))

    def tell(self, given: Assignment, *lines: dict[str, object]) -> None:
        """Lines of an attempt's journal, each so many microseconds (``at``) after now; the first of all begins it."""
        now = int(self.clock.read_text()) // 1000
        moved = [
            {key: now + value if key in ("at", "b") else value for key, value in line.items()}
            for line in lines
        ]  # type: ignore[operator]
        data = b"".join(json.dumps(line).encode() + b"\n" for line in moved)
        frame = LogFrame(run=given.run, attempt=given.attempt, epoch=given.epoch, offset=0, length=len(data))
        self.client.upload_journals("a1", encode_frames([(frame, data)]))

    def end(self, given: Assignment, state: AttemptState, **more: object) -> None:
        """The last step of an attempt."""
        usage = {"max_rss_bytes": 12_345_678, "cpu_seconds": 0.25, "log_size": 0}
        self.report(given, 3, state, **(usage | more))


@contextmanager
def fixed_world(base: Path, cache: Path) -> Iterator[World]:
    """The server with everything in it, until the block ends."""
    home, port, clock = base / "home", free_port(), base / "clock"
    shunter = console(home, base / "folder", port, cache)
    clock.write_text("0")
    with (base / "server.log").open("wb") as log:
        program = [sys.executable, "-c", _SERVER, str(port), str(clock)]
        server = subprocess.Popen(program, env=shunter.env, cwd=shunter.folder, stdout=log, stderr=log)
    try:
        client = until(lambda: _reached(server, shunter, home))
        with client:
            world = World(shunter, client, clock, port)
            _fill(world)
            yield world
    except BaseException:
        print((base / "server.log").read_text()[-20_000:])
        raise
    finally:
        stop(server)


def _reached(server: subprocess.Popen[bytes], shunter: Console, home: Path) -> Client | None:
    assert server.poll() is None, "the server has ended"
    token = home / "token"
    if not token.exists():
        return None
    client = Client(shunter.env["SHUNTER_API_URL"], token.read_text().strip())
    try:
        client.ready()
    except ServerUnreachable:
        client.close()
        return None
    return client


def _task(at: int, name: str, state: str, parent: int = 0, /, **more: object) -> dict[str, object]:
    told: dict[str, object] = {"k": f"{at:020x}", "t": name, "s": state, "n": 1, "at": at * 1_000_000}
    return told | ({"p": f"{parent:020x}"} if parent else {}) | more


def _keys(*at: int) -> list[str]:
    return [f"{one:020x}" for one in at]


#: What the tasks of the run that failed did: a map, what follows it, a flow inside, and what was not done any more.
_TOLD: list[dict[str, object]] = [
    _task(1, "nightly-report", "R", y="flow"),
    *(_task(at, "fetch", "C", 1, b=2_000_000, r={"i": at}) for at in range(2, 7)),
    _task(
        7,
        "fetch",
        "F",
        1,
        b=2_000_000,
        n=3,
        e={"type": "TimeoutError", "message": "no answer\nfor 30 s", "traceback": ""},
    ),
    *(_task(at + 10, "clean", "C", 1, b=9_000_000, u=_keys(at), r={"i": 1}) for at in range(2, 7)),
    _task(
        17,
        "clean",
        "S",
        1,
        n=0,
        u=_keys(7),
        e={"type": "Skipped", "message": "fetch failed", "traceback": ""},
    ),
    _task(20, "publish", "C", 1, y="flow", b=16_500_000),
    _task(18, "render", "H", 20, b=17_000_000, r={"i": "<p>"}),
    _task(19, "upload", "C", 20, b=18_000_000, u=_keys(18), r={"i": None}),
    _task(
        21,
        "total",
        "S",
        1,
        n=0,
        u=_keys(*range(12, 18)),
        e={"type": "Skipped", "message": "clean", "traceback": ""},
    ),
    _task(
        22,
        "nightly-report",
        "F",
        y="flow",
        k=_keys(1)[0],
        b=1_000_000,
        e={"type": "TimeoutError", "message": "no answer", "traceback": ""},
    ),
    {
        "art": {
            "key": "prices",
            "kind": "table",
            "data": [{"city": "Zürich", "price": 7}, {"city": "Bern", "price": None}],
            "description": "of today",
        },
        "k": _keys(1)[0],
        "at": 20_000_000,
    },
    {
        "art": {"key": "report", "kind": "markdown", "data": "# Report\n\nAll is well.", "description": ""},
        "at": 21_000_000,
    },
]


def _fill(world: World) -> None:
    client = world.client
    world.at(days=10)
    client.create_pool(PoolSpec(name="default"))
    client.create_pool(PoolSpec(name="gpu", match=["gpu"], limit=2, priority=5))
    client.create_queue("default", QueueSpec(name="fast", priority=10, limit=4))
    client.update_pool("gpu", PoolPatch(paused=True, by="ops@desk", reason="new drivers"))
    hello = DeploymentSpec(
        work=Work(command=["sh", "-c", "echo hello"], source="/srv/jobs"),
        pool="default",
        tags=["demo", "team=web"],
    )
    nightly = DeploymentSpec(
        work=Work(
            entrypoint="pipeline.py:main",
            source="/srv/jobs",
            python="/usr/bin/python3",
            timeout=3600,
            memory_limit=1536 * 2**20,
        ),
        parameters={"year": 2026, "city": "Zürich"},
        pool="default",
        queue="fast",
        retries=RetryPolicy(count=1, backoff=2, jitter=0.1, on=[Cause.EXIT_CODE, Cause.OOM]),
        exclusive=True,
        description="Loads what was published over night; 毎日.",
    )
    client.create_limit(LimitSpec(name="warehouse", max=3))
    client.set_secret("models", SecretValue(value="nobody-sees-this"))
    client.set_secret("warehouse", SecretValue(value="nor-this"))
    rate = Rate(count=10, seconds=60)
    client.create_limit(LimitSpec(name="mail", tag="mail", max=1, rate=rate, strategy="cancel_new"))
    train = DeploymentSpec(
        work=Work(
            command=["./train"],
            source="/srv/jobs",
            env={
                "MODE": "fast",
                "TOKEN": FromSecret(secret="models"),
                "KEY": FromAgent(agent_secret="gpu-key"),
            },
        ),
        tags=["gpu"],
        need={"gpu": 1, "memory": 8 * 2**30},
        limits=["warehouse"],
        max_active=2,
        when_full="cancel_running",
        priority=3,
    )
    for name, spec in (("hello", hello), ("nightly-report", nightly), ("train", train)):
        client.deploy(name, spec)

    world.at(days=5)
    client.set_secret("warehouse", SecretValue(value="nor-that"))
    world.sync("box2")
    client.deploy("nightly-report", nightly.model_copy(update={"queue": "default", "tags": ["report"]}))

    world.at(days=3)
    world.start("done", "hello", parameters={"greeting": "Grüße"}, priority=2)
    given = world.take()
    world.write(given, b"hello\n")
    world.at(days=3, seconds=-12)
    world.end(given, AttemptState.COMPLETED, exit_code=0, result={"said": "hello"}, log_size=6)

    world.at(days=1)
    world.start("cancelled", "train")
    client.cancel_run(world.runs["cancelled"])

    world.at(hours=2)
    world.start("failed", "nightly-report")
    given = world.take()
    world.at(hours=2, seconds=-61)
    world.end(given, AttemptState.FAILED, cause=Cause.EXIT_CODE, exit_code=3, message="exit code 3")
    given = world.take()
    world.tell(given, *_TOLD)
    world.at(hours=2, seconds=-150)
    world.end(given, AttemptState.FAILED, cause=Cause.EXIT_CODE, exit_code=3, message="exit code 3")

    world.at(minutes=30)
    world.start("crashed", "hello", tags=["ad-hoc"])
    given = world.take()
    world.at(minutes=25)
    message = "killed by the kernel: out of memory"
    world.end(given, AttemptState.CRASHED, cause=Cause.OOM, signal="SIGKILL", message=message)

    world.at(minutes=10)
    world.start("late", "train")
    world.at(seconds=95)
    world.start("running", "nightly-report", parameters={"year": 2025})
    running = world.take()

    world.at(seconds=2)
    world.sync("a1", running, free=7, session=UUID(int=101))
    world.sync("full3", troubles=["only 12MiB are free where its state folder is, less than 256MiB"])
    world.sync("old4")
    client.drain_agent("old4")
    world.at(seconds=0)
    world.start("upcoming", "hello", scheduled_at=(NOW + timedelta(hours=1)).isoformat())
    schedules = [
        Schedule(name="nightly", when=CronSchedule(cron="0 6 * * 1-5", timezone="Europe/Berlin")),
        Schedule(name="often", when=IntervalSchedule(seconds=5400), parameters={"year": 2024}),
    ]
    client.deploy(
        "nightly-report",
        nightly.model_copy(update={"queue": "default", "tags": ["report"], "schedules": schedules}),
    )
    night = Schedule(when=CronSchedule(cron="30 2 * * *", timezone="Europe/Berlin"), paused=True)
    client.deploy("train", train.model_copy(update={"schedules": [night]}))
    client.deploy("paused", hello.model_copy(update={"tags": []}))
    client.update_deployment(
        "paused", DeploymentPatch(paused=True, by="ops@desk", reason="the data are late")
    )
    until(lambda: client.list_runs(late=True).runs)
