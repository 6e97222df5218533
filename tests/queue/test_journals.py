"""Journals become rows once, whatever comes twice, late, torn or spoilt; the last word about a task counts."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter.states import ENDS, LETTERS
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.contracts.states import AttemptState
from shunter_work_pools.contracts.tasks import (
    ARTIFACTS_LIMIT,
    LINE_LIMIT,
    TASK_ENDS,
    TASK_STATES,
    TaskRun,
)
from shunter_work_pools.masking import NO_MASK, Mask
from shunter_work_pools.queue import journals, retain, task_views
from tests.queue.journal_lines import BEGAN, done, head, key, line, text
from tests.queue.world import Agent, World


def anybody(tx: object) -> bool:
    return True


async def take(
    world: World, granted: Assignment, data: bytes, offset: int = 0, mask: Mask = NO_MASK
) -> int | None:
    """Take bytes of a journal, as the server does; how far it has come."""
    reached: int | None = offset
    for piece in journals.pieces(data, offset, mask):

        def work(tx: Any, piece: journals.Piece = piece) -> int | None:
            return journals.take(tx, granted.run, granted.attempt, piece, anybody)

        reached = await world.store.write(work)
        if reached != piece.end:
            break
    return reached


async def tasks(world: World, run: UUID, *states: str, **more: Any) -> list[TaskRun]:
    """The task runs of a run."""
    asked = {"name": None, "cursor": None, "limit": 1000} | more
    page = await world.store.read(lambda tx: task_views.list_tasks(tx, run, list(states), **asked))
    return page.tasks


async def granted(world: World) -> tuple[Agent, Assignment]:
    """An attempt of a run that waits for nothing."""
    await world.pool()
    await world.deploy(pool="main")
    agent = await world.agent()
    await world.submit()
    (given,) = await agent.claim()
    return agent, given


def test_letters_are_those_of_flows() -> None:
    assert {letter: state.value for letter, state in TASK_STATES.items()} == {
        letter: state for state, letter in LETTERS.items()
    }
    assert {state.value for state in TASK_ENDS} == ENDS


async def test_lines_become_task_runs(world: World) -> None:
    _, one = await granted(world)
    error = {"type": "ValueError", "message": "no\0", "traceback": "Traceback ..."}
    data = text(
        head(),
        line(0, "R", t="sums", y="flow"),
        line(1, "P", p=key(0), n=0),
        line(2, "P", p=key(0), n=0, u=[key(1)]),
        line(1, "R", p=key(0)) | {"at": BEGAN + 10},
        done(1, 42, p=key(0)) | {"at": BEGAN + 20, "b": BEGAN + 10},
        line(2, "F", p=key(0), u=[key(1)], e=error, n=3) | {"at": BEGAN + 40, "b": BEGAN + 30},
    )
    assert await take(world, one, data) == len(data)
    flow, first, second = await tasks(world, one.run)
    assert (flow.id, flow.name, flow.flow, flow.parent, flow.state) == (key(0), "sums", True, None, "Running")
    assert (first.state, first.attempt, first.run_attempt, first.parent) == ("Completed", 1, 1, key(0))
    times = [world_time(moment) for moment in (first.created_at, first.started_at, first.ended_at)]
    assert times == [1, 10, 20]
    assert first.result is not None
    assert (first.result.kept, first.result.format, first.code) == ("inline", "json", "c0ffee")
    assert (second.state, second.attempt, second.upstream) == ("Failed", 3, [key(1)])
    assert second.error is not None
    assert (second.error.type, second.error.message) == ("ValueError", "no\N{REPLACEMENT CHARACTER}")
    assert [one.id for one in await tasks(world, one.run, "Failed", "Running")] == [key(0), key(2)]
    assert [one.id for one in await tasks(world, one.run, name="sums")] == [key(0)]


def world_time(moment: Any) -> int:
    return round(moment.timestamp() * 1e6) - BEGAN


async def test_the_first_flow_says_whether_there_are_hooks_for_a_crash(world: World) -> None:
    agent, one = await granted(world)

    async def known() -> tuple[int, bool]:
        return await world.store.read(lambda tx: journals.known(tx, one.run, one.attempt))

    assert await known() == (0, False)
    first = text(line(1, "R"))
    await take(world, one, first)
    assert await known() == (len(first), False)
    second = text(head() | {"h": True})
    await take(world, one, second, len(first))
    third = text(head("another"))
    await take(world, one, third, len(first + second))
    assert await known() == (len(first + second + third), True)
    await agent.run_through(one, AttemptState.FAILED)
    await world.retry(one.run)
    (one,) = await agent.claim()
    await take(world, one, text(head() | {"h": "yes"}))
    assert (await known())[1] is False


async def test_pages_have_each_task_once(world: World) -> None:
    _, one = await granted(world)
    await take(world, one, text(*(done(at // 2 * 2 + at % 2) | {"at": BEGAN + at // 3} for at in range(20))))
    found: list[str] = []
    cursor = None
    while True:
        page = await world.store.read(
            lambda tx, at=cursor: task_views.list_tasks(tx, one.run, [], None, at, 7)
        )
        found += [task.id for task in page.tasks]
        cursor = page.next
        if cursor is None:
            break
    assert found == [key(at) for at in range(20)]


async def test_what_is_asked_for_wrongly_is_refused(world: World) -> None:
    _, one = await granted(world)
    for wrong in ({"cursor": "x"}, {"limit": 0}, {"limit": 1001}):
        with pytest.raises(BadRequest):
            await tasks(world, one.run, **wrong)
    with pytest.raises(BadRequest, match="no state 'Late'"):
        await tasks(world, one.run, "Late")
    with pytest.raises(NotFound):
        await tasks(world, UUID(int=1))


async def test_any_cut_of_a_journal_gives_the_same_rows(world: World) -> None:
    """Bytes arrive in pieces of any length, each from where the server said, some of them twice."""
    _, one = await granted(world)
    data = text(head(), *(line(at, "R") for at in range(5)), *(done(at, at) for at in range(5)))
    for step in (1, 7, 50, 333):
        reached: int | None = 0
        for end in range(0, len(data) + step, step):
            assert reached is not None
            reached = await take(world, one, data[reached:end], reached)
        assert reached == len(data)
        assert await take(world, one, data[:100]) == len(data)  # begins elsewhere: changes nothing
    assert [task.state for task in await tasks(world, one.run)] == ["Completed"] * 5


async def test_a_torn_end_waits_for_its_rest(world: World) -> None:
    _, one = await granted(world)
    whole, torn = text(done(1)), text(done(2))[:-9]
    assert await take(world, one, whole + torn) == len(whole)
    assert [task.id for task in await tasks(world, one.run)] == [key(1)]


@pytest.mark.parametrize(
    "spoilt",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        b"3" * 5000,
        b'{"s":["C"],"k":"a","at":1}',
        b'{"s":"Z","k":"a","at":1,"t":"t"}',
        b'{"s":"C","k":"a b","at":1,"t":"t"}',
        b'{"s":"C","k":"a","at":1.5,"t":"t"}',
        b'{"s":"C","k":"a","at":-1,"t":"t"}',
        b'{"s":"C","k":"a","at":253402300800000000,"t":"t"}',
        b'{"s":"C","k":"a","at":1,"t":["t"]}',
        b'{"s":"C","k":"a","at":1,"t":"t","u":[1]}',
        b'{"s":"C","k":"a","at":1,"t":"t","u":"x"}',
        b'{"s":"C","k":"a","at":1,"t":"t","n":99999999999}',
        b'{"s":"C","k":"a","at":1,"t":"t","r":{"i":NaN}}',
        b'{"s":"C","k":"a","at":1,"t":"t","r":{"i":1e999}}',
        b'{"art":{"key":"../x","kind":"table","data":1},"at":1}',
        b'{"art":{"key":"x","kind":["table"],"data":1},"at":1}',
        b'{"art":{"key":"x","kind":"script","data":1},"at":1}',
        b'{"art":{"key":"x","kind":"table","data":' + b"[" * 101 + b"]" * 101 + b'},"at":1}',
        b'{"s":"C","k":"a","at":1,"t":"t","r":{"i":' + b"[" * 100 + b"]" * 100 + b"}}",
        b'{"art":7,"at":1}',
        b'{"pr":7}',
        b'{"pr":{"done":1,"percent":"x"}}',
        b'{"pr":{"done":1,"percent":1' + b"0" * 400 + b"}}",
        b'{"flow":7}',
    ],
    ids=lambda spoilt: spoilt[:60].decode("latin-1") or "nothing",
)
async def test_a_line_that_is_none_is_passed_over(world: World, spoilt: bytes) -> None:
    _, one = await granted(world)
    data = text(done(1)) + spoilt + b"\n" + text(done(2))
    assert await take(world, one, data) == len(data)
    assert [task.id for task in await tasks(world, one.run)] == [key(1), key(2)]
    assert await world.store.read(lambda tx: task_views.list_artifacts(tx, one.run)) == []


@given(st.binary(max_size=300), st.integers(0, 3))
def test_no_bytes_stop_a_journal(noise: bytes, at: int) -> None:
    """Whatever is between two good lines, both are read."""
    data = text(done(1)) + noise + b"\n" + text(done(2))
    found = {name for piece in journals.pieces(data, 0, NO_MASK) for name in piece.tasks}
    assert {key(1), key(2)} <= found


async def test_texts_that_no_store_keeps_are_made_fit(world: World) -> None:
    _, one = await granted(world)
    value = {"a\0": "\ud800", "big": 10**30}
    await take(world, one, text(done(1, value, t="naïve \0 \ud800 名")))
    (task,) = await tasks(world, one.run)
    assert task.name == "naïve \N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER} 名"
    own = await world.store.read(lambda tx: task_views.own_tasks(tx, one.run, 2, None, 10))
    assert own.lines[-1]["r"] == {"i": value}


async def test_a_line_that_never_ends_does_not_hold_up_what_follows(world: World) -> None:
    _, one = await granted(world)
    endless = b"x" * LINE_LIMIT
    assert await take(world, one, endless) == LINE_LIMIT
    rest = b"x\n" + text(done(1))
    assert await take(world, one, rest, LINE_LIMIT) == LINE_LIMIT + len(rest)
    assert [task.id for task in await tasks(world, one.run)] == [key(1)]


async def test_a_later_attempt_has_the_last_word(world: World) -> None:
    agent, first = await granted(world)
    await take(world, first, text(head(), done(1, 1), line(2, "F", e={"message": "x"}), line(3, "R")))
    await agent.run_through(first, AttemptState.FAILED)
    await world.retry(first.run)
    (second,) = await agent.claim()
    await take(world, second, text(head(code="new"), done(2, 2, n=1), line(3, "P", n=0)))
    # An agent that was away brings what the first attempt wrote last.
    rest = text(line(2, "R", n=9), line(3, "C", n=9), done(4, 4))
    known, _ = await world.store.read(lambda tx: journals.known(tx, first.run, 1))
    await take(world, first, rest, known)
    found = {task.id: (task.state, task.attempt, task.run_attempt) for task in await tasks(world, first.run)}
    assert found == {
        key(1): ("Completed", 1, 1),
        key(2): ("Completed", 1, 2),
        key(3): ("Pending", 0, 2),
        key(4): ("Completed", 1, 1),
    }
    by_id = {task.id: task for task in await tasks(world, first.run)}
    assert by_id[key(2)].error is None
    assert by_id[key(3)].started_at is None
    assert by_id[key(3)].created_at == by_id[key(3)].created_at.replace(microsecond=3)


async def test_what_a_killed_attempt_left_is_cancelled(world: World) -> None:
    """Nobody writes an end of a task whose process was killed."""
    agent, first = await granted(world)
    lines = (line(0, "R", t="sums", y="flow"), done(1, 1), line(2, "R"), line(3, "T", n=2), line(4, "P", n=0))
    await take(world, first, text(*lines))

    async def shown() -> list[str]:
        found = {task.id: task.state for task in await tasks(world, first.run)}
        for state in {*found.values(), "Cancelled"}:  # who asks for some of them is told the same
            some = [task.id for task in await tasks(world, first.run, state)]
            assert set(some) == {name for name, its in found.items() if its == state}
        told = await world.store.read(lambda tx: task_views.told(tx, first.run, ""))
        assert {one.key: one.state for one in told} == found
        assert all(one.ended_at is not None for one in told if one.state in ("Cancelled", "Completed"))
        return list(found.values())

    assert await shown() == ["Running", "Completed", "Running", "Retrying", "Pending"]
    await agent.run_through(first, AttemptState.CRASHED, cause="signal")
    assert await shown() == ["Cancelled", "Completed", "Cancelled", "Cancelled", "Cancelled"]
    left = (await tasks(world, first.run))[2]
    assert left.error is not None
    assert left.error.message == "Crashed (signal): attempt 1 of the run ended before this did"
    assert left.ended_at == (await world.run(first.run)).ended_at
    await world.retry(first.run)
    (second,) = await agent.claim()
    await take(world, second, text(line(2, "R")))
    assert await shown() == ["Cancelled", "Completed", "Running", "Cancelled", "Cancelled"]


async def test_a_run_is_told_what_it_completed(world: World) -> None:
    agent, first = await granted(world)
    data = text(
        head(),
        line(0, "F", t="sums", y="flow"),
        done(1, {"x": [1]}),
        line(2, "C"),  # not kept
        line(3, "C", r={"f": "0" * 40, "n": 20_000, "z": "p"}),
        line(4, "C", r={"f": "../../etc/passwd", "n": 1, "z": "p"}),
        line(5, "F"),
        line(6, "C", r={"url": "s3://b/x", "n": 3, "z": "j"}, c=""),
        line(7, "H", r={"i": 7}, c=""),  # the cache may be elsewhere, or have forgotten it
    )
    await take(world, first, data)
    await agent.run_through(first, AttemptState.FAILED)
    await world.retry(first.run)
    (second,) = await agent.claim()
    page = await world.store.read(lambda tx: task_views.own_tasks(tx, first.run, second.attempt, None, 2))
    assert page.lines == [
        {"flow": "sums", "c": "abc"},
        {"k": key(1), "s": "C", "r": {"i": {"x": [1]}}, "c": "c0ffee"},
        {"k": key(3), "s": "C", "r": {"f": "0" * 40, "n": 20_000, "z": "p"}, "c": "c0ffee"},
    ]
    rest = await world.store.read(lambda tx: task_views.own_tasks(tx, first.run, 2, page.next, 2))
    assert rest.lines == [
        {"k": key(6), "s": "C", "r": {"url": "s3://b/x", "n": 3, "z": "j"}},
        {"k": key(7), "s": "C", "r": {"i": 7}},
    ]
    assert rest.next is None


async def test_artifacts_and_progress_are_kept_masked(world: World) -> None:
    agent, one = await granted(world)
    mask = Mask(["hunter22"])
    table = {
        "key": "prices",
        "kind": "table",
        "data": [{"a": 1, "b": "hunter22"}],
        "description": "of hunter22",
    }
    data = text(
        {"art": {"key": "prices", "kind": "link", "data": "http://old"}, "k": "", "at": BEGAN},
        {"art": table, "k": key(1), "at": BEGAN + 1},
        {"pr": {"text": "with hunter22", "done": 3, "total": 12, "percent": 25.0}, "at": BEGAN + 2},
        line(1, "F", e={"type": "E", "message": "hunter22 is wrong", "traceback": "at hunter22"}),
        done(2, "hunter22", t="with hunter22"),
    )
    await agent.report(one, AttemptState.STARTING, AttemptState.RUNNING)
    await take(world, one, data, mask=mask)
    (listed,) = await world.store.read(lambda tx: task_views.list_artifacts(tx, one.run))
    assert (listed.key, listed.kind, listed.description, listed.task) == (
        "prices",
        "table",
        "of ********",
        key(1),
    )
    assert listed.data is None
    whole = await world.store.read(lambda tx: task_views.artifact(tx, one.run, "prices"))
    assert whole.data == [{"a": 1, "b": "********"}]
    assert whole.bytes == listed.bytes == len(json.dumps(whole.data, separators=(",", ":")))
    with pytest.raises(NotFound, match="no artifact 'other'"):
        await world.store.read(lambda tx: task_views.artifact(tx, one.run, "other"))
    (attempt,) = (await world.run(one.run)).attempts
    assert attempt.progress is not None
    assert (attempt.progress.percent, attempt.progress.note) == (25.0, "with ********: 3 of 12")
    failed = (await tasks(world, one.run, "Failed"))[0].error
    assert failed is not None
    assert "hunter22" not in failed.message + failed.traceback
    assert {task.name for task in await tasks(world, one.run)} == {"fetch", "with ********"}
    # A result is for the run itself, and must be what it was.
    own = await world.store.read(lambda tx: task_views.own_tasks(tx, one.run, 2, None, 10))
    assert own.lines[-1]["r"] == {"i": "hunter22"}


async def test_a_run_has_so_many_artifacts_and_no_more(world: World) -> None:
    _, one = await granted(world)

    def left(at: int, data: Any) -> dict[str, Any]:
        return {"art": {"key": f"a{at}", "kind": "markdown", "data": data}, "at": BEGAN}

    lines = [left(at, "x") for at in range(ARTIFACTS_LIMIT + 5)]
    await take(world, one, text(*lines, left(0, "newer"), left(1, "x" * 300_000)))
    found = await world.store.read(lambda tx: task_views.list_artifacts(tx, one.run))
    assert len(found) == ARTIFACTS_LIMIT
    newer = await world.store.read(lambda tx: task_views.artifact(tx, one.run, "a0"))
    assert newer.data == "newer"


async def test_who_does_not_hold_it_changes_nothing(world: World) -> None:
    _, one = await granted(world)
    (piece,) = journals.pieces(text(done(1)), 0, NO_MASK)
    assert await world.store.write(lambda tx: journals.take(tx, one.run, 1, piece, lambda tx: False)) is None
    assert await tasks(world, one.run) == []
    assert await world.store.write(lambda tx: journals.take(tx, UUID(int=1), 1, piece, anybody)) is None


async def test_nothing_is_left_of_a_deleted_run(world: World) -> None:
    agent, one = await granted(world)
    left = {"art": {"key": "a", "kind": "markdown", "data": "x"}, "at": BEGAN}
    await take(world, one, text(head(), left, *(done(at) for at in range(retain.TASKS_BATCH + 1))))
    assert await world.store.write(lambda tx: retain.delete_tasks(tx, [one.run])) == 0  # it has not ended
    await agent.run_through(one)
    assert await world.store.write(lambda tx: retain.delete_tasks(tx, [one.run])) == retain.TASKS_BATCH
    assert await world.store.write(lambda tx: retain.delete_runs(tx, [one.run])) == 1
    for table in (journals.journals, journals.task_runs, journals.artifacts):
        rows = await world.store.read(lambda tx, table=table: tx.conn.execute(table.select()).all())
        assert rows == []


async def test_ten_thousand_ends_cost_little(world: World) -> None:
    """Of the 300 microseconds that a tracked task may take, the server's books take a part."""
    _, one = await granted(world)
    data = text(head(), *(done(at, at, p=key(0)) for at in range(10_000)))
    began, used = time.perf_counter(), time.process_time()
    assert await take(world, one, data) == len(data)
    took, used = time.perf_counter() - began, time.process_time() - used
    print(f"{took * 100:.0f} us a task, {used * 100:.0f} us of processor")
    assert used / 10_000 < 150e-6
