"""Graphs made at random, executed, and compared with a model that knows nothing of threads."""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from shunter import TaskFuture, UpstreamFailed, allow_failure, flow, flow_engine, task
from shunter.executors import Threads
from shunter.journal import Journal
from shunter.runs import Root
from tests.patience import SOON


@dataclass
class Node:
    """One task of a graph."""

    needs: list[int]
    lenient: list[int]
    after: list[int]
    fails: int  # so many tries fail
    retries: int
    called: bool
    is_async: bool
    nests: bool


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 14))):
        some = st.lists(st.integers(0, number - 1), max_size=3, unique=True) if number else st.just([])
        nodes.append(
            Node(
                draw(some), draw(some), draw(some), draw(st.sampled_from([0, 0, 0, 1, 2])), draw(st.integers(0, 2)),
                draw(st.integers(0, 4)) == 0, draw(st.booleans()), draw(st.booleans()),
            )
        )  # fmt: skip
    return nodes


@dataclass
class Outcome:
    """What the model says of a node."""

    state: str
    value: int = 0
    tries: int = 0


def model(nodes: list[Node]) -> list[Outcome]:
    """Each node's end, from those before it."""
    ends: list[Outcome] = []
    for number, node in enumerate(nodes):
        if any(ends[i].state != "Completed" for i in [*node.needs, *node.after]):
            ends.append(Outcome("Skipped"))
        elif node.fails > node.retries:
            ends.append(Outcome("Failed", tries=node.retries + 1))
        else:
            given_ = [ends[i].value for i in node.needs]
            given_ += [ends[i].value if ends[i].state == "Completed" else -1 for i in node.lenient]
            ends.append(Outcome("Completed", value(number, given_), node.fails + 1))
    return ends


def value(number: int, inputs: list[int]) -> int:
    return (number + 1) * 7 + sum(inputs) * 3


@dataclass
class Executed:
    """What really happened."""

    tries: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, number: int, node: Node, inputs: list[Any]) -> int:
        with self.lock:
            self.tries[number] = tries = self.tries.get(number, 0) + 1
        if tries <= node.fails:
            raise OSError(f"{number} fails")
        numbers = [-1 if isinstance(part, Exception) else part for part in inputs]
        return value(number, numbers)


@task
def identity(n: int) -> int:
    return n


def execute(
    nodes: list[Node], executor: Any, journal: Path | None = None
) -> tuple[list[str], list[Any], dict[int, int]]:
    """Run a graph; states, values and the number of tries of each."""
    executed = Executed()

    def body(number: int, inputs: list[Any]) -> int:
        found = executed.one(number, nodes[number], inputs)
        return identity.submit(found).result() if nodes[number].nests else found

    async def body_async(number: int, inputs: list[Any]) -> int:
        found = executed.one(number, nodes[number], inputs)
        return await identity.submit(found) if nodes[number].nests else found

    plain, coroutine = task(name="plain")(body), task(name="coroutine")(body_async)
    states: list[str] = []

    @flow(executor=executor)
    def whole() -> list[Any]:
        futures: list[TaskFuture[int] | Outcome] = []
        for number, node in enumerate(nodes):
            one: Any = (coroutine if node.is_async else plain).with_options(retries=node.retries)
            inputs = [futures[i] for i in node.needs] + [allow_failure(futures[i]) for i in node.lenient]
            futures.append(one.submit(number, inputs, wait_for=[futures[i] for i in node.after]))
        values: list[Any] = []
        for future in futures:
            assert isinstance(future, TaskFuture)
            values.append(future.result(raise_on_failure=False))
            states.append(future.state)
        return values

    root = Root(Journal(str(journal)) if journal is not None else None)
    values = flow_engine.run(whole, (), {}, root).result()
    return states, values, executed.tries


@given(graphs(), st.sampled_from([1, 2, 8]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_graph_ends_as_the_model_says(nodes: list[Node], threads: int) -> None:
    expected = model(nodes)
    states, values, tries = execute(nodes, Threads(threads))
    assert states == [end.state for end in expected]
    for end, found in zip(expected, values, strict=True):
        if end.state == "Completed":
            assert found == end.value
        elif end.state == "Skipped":
            assert isinstance(found, UpstreamFailed)
        else:
            assert isinstance(found, OSError)
    assert tries == {number: end.tries for number, end in enumerate(expected) if end.tries}


@given(graphs())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_graph_gone_on_with_executes_what_had_not_completed(nodes: list[Node]) -> None:
    expected = model(nodes)
    with tempfile.TemporaryDirectory() as folder:
        execute(nodes, Threads(2), Path(folder, "journal"))
        for node in nodes:
            node.fails = 0
        states, values, tries = execute(nodes, Threads(2), Path(folder, "journal"))
    assert set(states) == {"Completed"}
    done = {number for number, end in enumerate(expected) if end.state == "Completed"}
    # A lenient input that failed before and completes now has the same key, so its dependant is not executed again.
    assert set(tries) == set(range(len(nodes))) - done
    assert len(values) == len(nodes)


class OneFlow(RuleBasedStateMachine):
    """A flow that is steered from outside: tasks are submitted, let go, failed and cancelled in any order."""

    futures = Bundle("futures")

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[int, threading.Event] = {}
        self.verdicts: dict[int, bool] = {}
        self.needs: dict[int, list[int]] = {}
        self.known: dict[int, TaskFuture[int]] = {}
        self.cancelled: set[int] = set()
        self.orders: list[Any] = []
        self.bell = threading.Condition()
        self.thread = threading.Thread(target=self._flow, daemon=True)
        self.thread.start()

    def _flow(self) -> None:
        @flow(executor=Threads(64))
        def steered() -> None:
            while True:
                with self.bell:
                    self.bell.wait_for(lambda: bool(self.orders))
                    order = self.orders.pop(0)
                if order is None:
                    return
                order()
                with self.bell:
                    self.bell.notify_all()

        steered()

    def _in_flow(self, order: Any) -> None:
        done = threading.Event()

        def whole() -> None:
            order()
            done.set()

        with self.bell:
            self.orders.append(whole)
            self.bell.notify_all()
        assert done.wait(10)

    @initialize(target=futures)
    def first(self) -> int:
        return self._submitted([])

    @rule(target=futures, needs=st.lists(futures, max_size=3, unique=True))
    def submit(self, needs: list[int]) -> int:
        return self._submitted(needs)

    def _submitted(self, needs: list[int]) -> int:
        number = len(self.known)
        self.gates[number] = threading.Event()
        self.needs[number] = needs

        @task(name="steered")
        def one(n: int, _: list[int]) -> int:
            self.gates[n].wait(20)
            if not self.verdicts[n]:
                raise ValueError(n)
            return n

        def order() -> None:
            self.known[number] = held.submit(number, [self.known[i] for i in needs])

        held = self.one = getattr(self, "one", one)
        self._in_flow(order)
        return number

    @rule(number=futures, good=st.booleans())
    def let_go(self, number: int, good: bool) -> None:
        if number not in self.verdicts:
            self.verdicts[number] = good
            self.gates[number].set()

    @rule(number=futures)
    def cancel(self, number: int) -> None:
        ended = self._settled(number)
        took = self.known[number].cancel()
        if took:
            assert not ended
            self.cancelled.add(number)
            self.verdicts.setdefault(number, True)
            self.gates[number].set()
        else:
            assert number in self.verdicts or ended

    def _expected(self, number: int) -> str:
        if number in self.cancelled:
            return "Cancelled"
        above = [self._expected(i) for i in self.needs[number]]
        if any(state in ("Failed", "Skipped", "Cancelled") for state in above):
            return "Skipped"
        if any(state in ("Pending", "Running") for state in above):
            return "Pending"
        if number not in self.verdicts:
            return "Running"
        return "Completed" if self.verdicts[number] else "Failed"

    @invariant()
    def all_as_expected(self) -> None:
        deadline = time.monotonic() + SOON
        for number, future in self.known.items():
            expected = self._expected(number)
            if expected == "Skipped" and not self._settled(number):
                expected = "Pending"  # it is skipped when all of its upstream has ended
            while future.state != expected:
                assert time.monotonic() < deadline, (number, future.state, expected)
                time.sleep(0.002)

    def _settled(self, number: int) -> bool:
        """Whether it has its end, and not only no other one before it."""
        expected = self._expected(number)
        if expected == "Skipped":
            return all(self._settled(i) for i in self.needs[number])
        return expected not in ("Pending", "Running")

    @rule()
    def nothing(self) -> None:
        """A moment in which the flow goes on by itself."""

    def teardown(self) -> None:
        for number, gate in self.gates.items():
            self.verdicts.setdefault(number, True)
            gate.set()
        with self.bell:
            self.orders.append(None)
            self.bell.notify_all()
        self.thread.join(20)
        assert not self.thread.is_alive(), "the flow does not end"
        for number, future in self.known.items():
            assert future.state == self._expected(number)


TestOneFlow = OneFlow.TestCase
TestOneFlow.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # a step that fails waits; to shrink that takes an hour
)
