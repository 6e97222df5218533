"""A real Dask cluster of processes: data stays on the workers, one is killed, tags become resources."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import shunter
from shunter import TaskTimeout, allow_failure, artifacts, flow, flow_engine, get_logger, task, track
from shunter.errors import ExecutorError
from shunter.executors.dask import Dask
from shunter.futures import NOT_HERE
from shunter.journal import Journal, lines
from shunter.runs import Root
from tests.flows.a_run import executed
from tests.flows.workflows import SHAPES, add, add_async, by_hand, fail, nap, nested, pid_of, workflow
from tests.patience import SOON

MEGABYTES = 100


@task
def made(megabytes: int) -> bytes:
    return os.urandom(1024) * 1024 * megabytes


@task
def changed(data: bytes) -> bytes:
    return data[::-1]


@task
def length(data: bytes, *_: Any) -> int:
    return len(data)


@task
def kind(value: Any) -> str:
    return type(value).__name__


@task(tags=["big"])
def where() -> int:
    return os.getpid()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, resources={"BIG": 1}
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as client:
        yield client


def test_resources_that_are_none(client: Client) -> None:
    with pytest.raises(TypeError, match="it has for each tag what a task takes"):
        Dask(client, resources={"gpu": 1})  # type: ignore[dict-item]


@pytest.mark.parametrize("shape", SHAPES)
def test_published_workflows(client: Client, shape: str) -> None:
    assert workflow.with_options(executor=client)(shape) == by_hand(shape)


def test_by_address_and_by_cluster(cluster: LocalCluster) -> None:
    for executor in (cluster.scheduler_address, cluster, Dask(cluster)):

        @flow(executor=executor)
        def whole() -> list[Any]:
            return [
                pid_of.submit().result(),
                add.submit(add.submit(1), 2).result(),
                add_async.submit(3).result(),
            ]

        pid, *values = whole()
        assert pid != os.getpid()
        assert values == [3, 3]

    kept = []

    @flow(executor=cluster)
    def leave_a_future() -> None:
        kept.append(add.submit(1))

    leave_a_future()
    with pytest.raises(ExecutorError, match="the value of task add cannot be had from the executor"):
        kept[0].result()


PROGRAM = """
import os
from dataclasses import dataclass
from shunter import flow, task

@dataclass
class Point:
    x: int

def one_more(n):
    return n + 1

@task
def more(n):
    return one_more(n)

@task
def point(n):
    return Point(n)

@task
def x_of(point):
    return point.x

@task
def through(n):
    return more(n)

@flow(executor=os.environ["EXECUTOR"])
def whole():
    made = point.submit(4)
    return more.map(range(2)).result(), x_of.submit(made).result(), isinstance(made.result(), Point), through.submit(7).result()

if __name__ == "__main__":
    print(whole())
"""


@pytest.mark.parametrize("where", ["program", "entrypoint", "dashes", "text"])
def test_workers_need_not_have_the_program(where: str, cluster: LocalCluster, tmp_path: Path) -> None:
    """Nor does a process of ``"processes"``, where nothing is that it could import: a notebook, a file ``my-flow.py``."""
    file = tmp_path / ("my-flow.py" if where == "dashes" else "my_flow.py")
    file.write_text(PROGRAM)
    runner = str(Path(shunter.__file__).with_name("runner.py"))
    command = {"program": [str(file)], "text": ["-c", PROGRAM]}.get(where, [runner, f"{file.name}:whole"])
    executor = "processes" if where in ("dashes", "text") else cluster.scheduler_address
    done = subprocess.run(
        [sys.executable, *command],
        env={"EXECUTOR": executor, "SHUNTER_SOURCE": str(tmp_path), "SHUNTER_RESULT": str(tmp_path / "result")},
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if command[0] == runner:
        assert json.loads((tmp_path / "result").read_text()) == [[1, 2], 4, True, 8]
    else:
        assert done.stdout == "([1, 2], 4, True, 8)\n"


def test_the_time_of_a_task_begins_on_the_worker(client: Client) -> None:
    short = nap.with_options(timeout=1)

    @flow(executor=client)
    def whole() -> list[float]:
        with pytest.raises(TaskTimeout, match="task nap took longer than 1 seconds"):
            short.submit(1.5).result()
        return short.map([0.3] * 20).result()  # four at once

    assert whole() == [0.3] * 20


def test_intermediate_data_never_reaches_the_client(client: Client) -> None:
    """The kernel counts what each socket of this process, which has the scheduler too, has received."""

    @flow(executor=client)
    def whole() -> tuple[int, int, int]:
        counted = _received()
        data = made.submit(MEGABYTES)
        for _ in range(3):
            data = changed.submit(data)
        found = length.submit(data).result()
        assert data._value is NOT_HERE
        without = _received() - counted
        assert len(data.result()) == found
        return found, without, _received() - counted - without

    found, without, asked_for = whole()
    assert found == MEGABYTES * 1024 * 1024
    assert without < 2 * 1024 * 1024
    assert asked_for >= found  # what is asked for is counted


def _received() -> int:
    """Bytes that the TCP sockets of this process have received: ``tcpi_bytes_received`` of linux/tcp.h."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
        except OSError:
            continue  # closed meanwhile, or of another family
        total += struct.unpack_from("Q", info, 128)[0]
    return total


def test_tags_become_resources_where_asked_for(client: Client) -> None:
    @flow(executor=Dask(client, resources={"big": {"BIG": 1}}))
    def asked() -> int:
        return where.submit().result()

    assert asked() != os.getpid()
    future: list[Any] = []

    @flow(executor=Dask(client, resources={"big": {"MISSING": 1}}))
    def waits() -> str:
        future.append(where.submit())
        with pytest.raises(TimeoutError):
            future[0].result(timeout=0.5)
        future[0].cancel()
        return "no worker has it"

    assert waits() == "no worker has it"


def test_failures_retries_and_what_depends_on_them(client: Client) -> None:
    @flow(executor=client)
    def whole() -> list[Any]:
        bad = fail.with_options(retries=1).submit("far")
        below = add.submit(add.submit(bad), 1)
        below.wait()
        with pytest.raises(ValueError, match="far"):
            bad.result()
        after = add.submit(1, wait_for=[allow_failure(bad)])
        return [
            bad.state,
            below.state,
            kind.submit(allow_failure(bad)).result(),
            after.result(),
            nested.submit(2).result(),
        ]

    assert whole() == ["Failed", "Skipped", "ValueError", 1, 2]


def test_a_worker_is_killed_during_a_map(client: Client, cluster: LocalCluster, tmp_path: Path) -> None:
    @task
    def slow(n: int) -> int:
        time.sleep(0.05)
        return n * n

    @flow(executor=client)
    def whole() -> int:
        victim = pid_of.submit().result()
        futures = slow.map(range(60))
        futures[5].wait()
        os.kill(victim, signal.SIGKILL)
        return sum(futures.result())

    assert whole() == sum(n * n for n in range(60))
    client.wait_for_workers(2, timeout=30)


def test_going_on_with_results_that_stayed_on_the_workers(client: Client, tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/results"
    ran = tmp_path / "ran"

    @task
    def step(n: int, data: bytes = b"") -> bytes:
        with ran.open("a") as file:
            file.write(f"{n}\n")
        return bytes(50_000) if n == 1 else b"small"

    @flow(executor=client, result_storage=storage)
    def whole() -> int:
        one = step.submit(1)
        two = step.submit(2, one)
        if FAIL:
            raise RuntimeError("after two tasks")
        return length.submit(one, two).result()

    global FAIL
    FAIL = True
    journal = Journal(str(tmp_path / "journal"))
    assert flow_engine.run(whole, (), {}, Root(journal)).name == "Failed"
    kept = {line["t"]: line.get("r") for line in lines(journal.path) if "t" in line}
    assert sorted(os.listdir(tmp_path / "results")) != []
    assert kept["step"] is not None
    FAIL = False
    again = Journal(str(tmp_path / "journal"))
    assert flow_engine.run(whole, (), {}, Root(again)).result() == 50_000
    assert ran.read_text() == "1\n2\n"


FAIL = False


def test_a_scheduler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from shunter.executors import dask

    monkeypatch.setattr(dask, "PATIENCE", 1)

    @flow(executor="tcp://127.0.0.1:9")
    def whole() -> None:
        add.submit(1)

    with pytest.raises(ExecutorError, match=r"there is no Dask scheduler at tcp://127.0.0.1:9"):
        whole()


#: What 2024.8.0 answers to a client of 2026.8.0.
OLDER = """
import distributed.cli.dask_scheduler as command
from distributed import Scheduler
new = Scheduler.identity
def identity(self): return new(self)
Scheduler.identity = identity
command.main()
"""


def test_a_scheduler_of_another_version(tmp_path: Path) -> None:
    with _scheduler_and_worker(tmp_path, scheduler=["-c", OLDER]) as (address, _):

        @flow(executor=address)
        def whole() -> None:
            add.submit(1)

        words = rf"scheduler at {address} gives no answer that is understood here, with Python .* has it another version"
        with pytest.raises(ExecutorError, match=words):
            whole()
        # What is left of the attempt is closed, and not when the garbage collector finds it, in whatever thread.
        of_it = [one for one in gc.get_objects() if type(one) is Client and one._start_arg == address]
        assert all(one.status == "closed" for one in of_it)


#: A process of Dask that cannot import Shunter.
BARE = """
import sys
sys.path[:] = [path for path in sys.path if not path.endswith("flows")]
from distributed.cli.dask_{0} import main
main()
"""


@pytest.mark.parametrize("who", ["scheduler", "worker"])
def test_a_cluster_without_shunter(who: str, tmp_path: Path) -> None:
    bare: dict[str, Any] = {who: ["-c", BARE.format(who)]}
    with _scheduler_and_worker(tmp_path, **bare) as (address, _), Client(address) as client:
        client.wait_for_workers(1)

        @flow(executor=client)
        def whole() -> None:
            add.submit(1)

        for executor in (client, address):
            with pytest.raises(
                ExecutorError, match=rf"the Dask {who}.* cannot import shunter: install there"
            ):
                whole.with_options(executor=executor)()


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_scheduler_that_goes_away(how: str, tmp_path: Path) -> None:
    with _scheduler_and_worker(tmp_path) as (address, scheduler):
        client = Client(address, set_as_default=False, timeout=2)

        @flow(executor=client)
        def whole() -> list[str]:
            slow = nap.submit(60)
            below = add.submit(slow)
            with pytest.raises(TimeoutError):
                slow.result(timeout=0.5)
            if how == "killed":
                scheduler.kill()
            else:
                client.close()
            assert slow.wait(timeout=30)
            with pytest.raises(ExecutorError, match="the executor gave up task nap"):
                slow.result()
            late = add.submit(below)
            late.wait()
            again = add.submit(1)
            with pytest.raises(ExecutorError):
                again.result(timeout=30)
            return [slow.state, below.state, late.state, again.state]

        assert whole() == ["Failed", "Skipped", "Skipped", "Failed"]
        client.close()


@contextmanager
def _scheduler_and_worker(
    folder: Path,
    scheduler: Sequence[str] = ("-m", "distributed.cli.dask_scheduler"),
    worker: Sequence[str] = ("-m", "distributed.cli.dask_worker"),
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler and a worker that are processes of their own.

    Args:
        scheduler, worker: what Python is given to execute.
    """
    told = folder / "scheduler.json"
    more: dict[str, Any] = {
        "cwd": folder,
        "env": os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    about = ["--scheduler-file", str(told), "--no-dashboard"]
    main = subprocess.Popen([sys.executable, *scheduler, "--port", "0", *about], **more)
    other = subprocess.Popen([sys.executable, *worker, "--no-nanny", *about], **more)
    try:
        deadline = time.monotonic() + SOON
        while not told.exists() or not told.read_text():
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.05)
        yield json.loads(told.read_text())["address"], main
    finally:
        for process in (other, main):
            process.kill()
            process.wait()


@task
def telling(name: str) -> str:
    artifacts.table(name, [{"name": name}])
    for _ in track([1, 2], name):
        get_logger().info("a word of %s", name)
    logging.getLogger("library").warning("of a library")
    logging.getLogger("library").debug("too quiet")
    return name


def test_artifacts_progress_and_records_of_tasks_there(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @flow(executor=client)
    def whole() -> list[str]:
        return telling.map(["one", "two", "three"]).result()

    path = str(tmp_path / "journal")
    with caplog.at_level(logging.INFO):
        assert flow_engine.run(whole, (), {}, Root(Journal(path))).result() == ["one", "two", "three"]
    found = list(lines(path))
    keys = {line["k"] for line in found if line.get("t") == "telling"}
    assert sorted(line["art"]["key"] for line in found if "art" in line) == ["one", "three", "two"]
    assert {line["k"] for line in found if "art" in line} == keys
    assert [line["pr"]["done"] for line in found if "pr" in line].count(2) == 3
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert sorted(one for one in told if one[0].startswith("shunter")) == [
        ("shunter.telling", "INFO", f"a word of {name}")
        for name in ("one", "one", "three", "three", "two", "two")
    ]
    assert told.count(("library", "WARNING", "of a library")) == 3
    assert not [words for _, _, words in told if words == "too quiet"]
    # A scheduler that is there for months keeps nothing of it.
    topics = client.run_on_scheduler(lambda dask_scheduler: [*dask_scheduler._broker._topics])
    assert not [topic for topic in topics if topic.startswith("shunter-")]


def test_tasks_in_the_process_of_the_flow_itself_tell_it_once(tmp_path: Path) -> None:
    """A cluster may be threads of the flow's process: there its journal and its handlers are at hand."""
    code = (
        "from distributed import LocalCluster, Client\n"
        "from tests.flows.test_dask import telling; from shunter import flow\n"
        "@flow\ndef whole(): return telling.submit('one').result()\n"
        "with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:\n"
        "    whole.with_options(executor=client)()\n"
    )
    done = executed(code, tmp_path / "journal")
    assert done.stderr.count("a word of one") == 2
    assert len([line for line in lines(str(tmp_path / "journal")) if "art" in line]) == 1


def test_an_asynchronous_client_is_refused(cluster: LocalCluster) -> None:
    class Asynchronous:
        asynchronous = True

        def submit(self) -> None: ...

        def scheduler_info(self) -> None: ...

    @flow(executor=Asynchronous())
    def whole() -> None:
        add.submit(1)

    with pytest.raises(ExecutorError, match="asynchronous Dask client cannot be used"):
        whole()
