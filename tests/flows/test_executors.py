"""Every executor runs the same workflows to the same end; what is particular to each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import pytest

from shunter import TaskCancelled, flow, task
from shunter.errors import ExecutorError, WorkerDied
from shunter.executors import Processes, Threads
from shunter.executors.threads import Daemons
from tests.flows.workflows import (
    SHAPES,
    add,
    add_async,
    by_hand,
    fail,
    leave,
    nap,
    nested,
    pid_of,
    thread_of,
    workflow,
)
from tests.patience import SOON


class AtOnce(Executor):
    """One that does everything when it is submitted."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as exc:
            future.set_exception(exc)
        return future


@pytest.fixture(
    params=["threads", "one thread", "processes", "ThreadPoolExecutor", "ProcessPoolExecutor", "AtOnce"]
)
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each kind; Dask is in test_dask."""
    if request.param == "ThreadPoolExecutor":
        with ThreadPoolExecutor(3) as threads:
            yield threads
    elif request.param == "ProcessPoolExecutor":
        import multiprocessing

        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
            yield processes
    else:
        yield {"threads": "threads", "one thread": Threads(1), "processes": Processes(2), "AtOnce": AtOnce()}[
            request.param
        ]


def test_published_workflows(executor: Any) -> None:
    assert sum(map(len, SHAPES.values())) > 800
    for shape in SHAPES:
        assert workflow.with_options(executor=executor)(shape) == by_hand(shape)


def test_failures_retries_and_coroutines_are_the_same_everywhere(executor: Any) -> None:
    @flow(executor=executor)
    def whole() -> list[Any]:
        bad = fail.with_options(retries=2).submit("text")
        below = add.submit(bad)
        below.wait()
        with pytest.raises(ValueError, match="text"):
            bad.result()
        return [
            bad.attempt,
            bad.state,
            below.state,
            add_async.submit(add.submit(1), 2).result(),
            nested.submit(3).result(),
        ]

    assert whole() == [3, "Failed", "Skipped", 3, 3]


def test_threads_are_made_when_needed_and_processes_are_other_ones() -> None:
    @flow(executor=Threads(3))
    def threads() -> set[str]:
        first = thread_of.submit().result()
        return {first, *thread_of.map(range(50)).result()}

    @flow(executor=Processes(2))
    def processes() -> set[int]:
        return set(pid_of.map(range(20)).result())

    assert 1 <= len(threads()) <= 3
    pids = processes()
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2
    deadline = time.monotonic() + SOON
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "processes are left over"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_that_submit_at_once_do_not_make_a_thread_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Daemons(1)
    met = threading.Barrier(2)

    class Idle:
        def acquire(self, blocking: bool) -> bool:
            with suppress(threading.BrokenBarrierError):
                met.wait(0.3)  # both are here, unless the other one is kept out
            return False

        def release(self) -> None:
            pass

    monkeypatch.setattr(pool, "_idle", Idle())
    done: SimpleQueue[int] = SimpleQueue()
    both = [
        threading.Thread(target=pool.submit, args=(lambda: done.put(threading.get_ident()),))
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert done.get(timeout=5) == done.get(timeout=5)
    assert pool._threads == 1
    pool.shutdown()


@pytest.mark.parametrize(
    ("how", "text"),
    [("os._exit", "exited with 7"), ("segfault", "ended by SIGSEGV"), ("kill", "ended by SIGKILL")],
)
def test_a_process_that_dies_takes_its_task_alone(how: str, text: str) -> None:
    @flow(executor=Processes(2))
    def whole() -> int:
        sleeping = nap.submit(0.5)
        dead = leave.with_options(retries=1).submit(how)
        with pytest.raises(WorkerDied, match=rf"the process that executed task leave .*{text}"):
            dead.result()
        assert dead.attempt == 2
        assert sleeping.result() == 0.5
        return add.submit(1, 2).result()

    assert whole() == 3


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_task_that_forks_goes_on_in_the_parent_alone(
    executor: str, capfd: pytest.CaptureFixture[str]
) -> None:
    @flow(executor=executor)
    def whole() -> str:
        said: str = leave.submit("fork").result()
        print("once")
        return said

    assert whole() == "the parent"
    assert capfd.readouterr().out.count("once") == 1


def test_what_cannot_go_to_another_process_is_told() -> None:
    import threading

    @flow(executor="processes")
    def whole() -> None:
        with pytest.raises(
            TypeError, match=r"task add or its arguments cannot be sent to another process.*lock"
        ):
            add.submit(threading.Lock()).result()
        with pytest.raises(
            TypeError, match="the result of task leave cannot be sent from one process to another"
        ):
            leave.submit("lock").result()
        with pytest.raises(ExecutorError, match=r"task leave raised OddError: .*which itself cannot be sent"):
            leave.submit("odd").result()

    whole()


def test_tasks_made_inside_functions_go_to_other_processes_by_cloudpickle() -> None:
    outside = 5

    @task
    def local(n: int) -> int:
        return n + outside

    class Machine:
        @task
        def times(self, n: int) -> int:
            return n * 2

    @flow(executor="processes")
    def whole() -> list[int]:
        return [
            local.submit(1).result(),
            task(lambda n: n - 1).submit(1).result(),
            Machine().times.submit(4).result(),
        ]

    assert whole() == [6, 0, 8]


def test_an_error_from_another_process_says_where() -> None:
    @flow(executor="processes")
    def whole() -> None:
        fail.submit("far away").result()

    with pytest.raises(ValueError, match="far away") as told:
        whole()
    assert "workflows.py" in "".join(told.value.__notes__)


def test_executors_that_are_none() -> None:
    def use(executor: Any) -> None:
        @flow(executor=executor)
        def whole() -> int:
            return add.submit(1).result()

        whole()

    with pytest.raises(ExecutorError, match="there is no executor 'thread': it is 'threads', 'processes'"):
        use("thread")
    with pytest.raises(ExecutorError, match="3 cannot execute tasks"):
        use(3)
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        use(closed)
    closed_processes = ProcessPoolExecutor(1)
    closed_processes.shutdown()
    with pytest.raises(ExecutorError, match="takes no tasks any more"):
        use(closed_processes)
    with pytest.raises(ValueError, match="0 workers"):
        Threads(0)


def test_a_try_that_comes_back_after_it_was_given_up_is_not_listened_to() -> None:
    given: list[Future[Any]] = []

    class Late(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_running_or_notify_cancel()
            given.append(future)
            return future

    @flow(executor=Late())
    def whole() -> Any:
        one = add.submit(1)
        assert one.cancel()
        given[0].set_result("late")
        return one.state, one.result(raise_on_failure=False)

    state, error = whole()
    assert state == "Cancelled"
    assert isinstance(error, TaskCancelled)


def test_a_small_protocol_lets_another_executor_keep_its_values() -> None:
    """As docs/flows.md has it: one method, and values stay with the executor until somebody asks for them."""
    fetched: list[str] = []

    class Value(Future[Any]):
        name = ""

        def result(self, timeout: float | None = None) -> Any:
            if self.name.startswith("add"):
                fetched.append(self.name)
            return super().result(timeout)

    class Elsewhere:
        def __init__(self) -> None:
            self.pool = ThreadPoolExecutor(2)

        def submit_with_futures(
            self, function: Any, payload: Any, upstream: Any, *, name: str, tags: frozenset[str]
        ) -> Value:
            value = Value()

            def do() -> None:
                try:
                    value.set_result(function(payload, [Future.result(one) for one in upstream]))
                except BaseException as exc:
                    value.set_exception(exc)

            value.name = name
            self.pool.submit(do)
            return value

    @flow(executor=Elsewhere())
    def whole() -> int:
        future = add.submit(1)
        for _ in range(5):
            future = add.submit(future, 1)
        return future.result()

    assert whole() == 6
    assert len(fetched) == 1
    assert workflow.with_options(executor=Elsewhere())("fan") == by_hand("fan")
