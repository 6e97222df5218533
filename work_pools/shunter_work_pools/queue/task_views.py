"""Task runs, graphs and artifacts as people see them, and what a run is told of its own tasks; reads only."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, tuple_

from shunter_work_pools.contracts.base import moment
from shunter_work_pools.contracts.errors import BadRequest, NotFound
from shunter_work_pools.contracts.tasks import (
    Artifact,
    OwnTasks,
    TaskError,
    TaskPage,
    TaskResult,
    TaskRun,
    TaskState,
)
from shunter_work_pools.queue.task_graph import Told
from shunter_work_pools.queue.task_standing import Standing, standing_of
from shunter_work_pools.queue.views import maybe
from shunter_work_pools.storage.schema import artifacts, journals, runs, task_runs
from shunter_work_pools.storage.store import Tx

#: Task runs on a page.
PAGE_LIMIT = 1000
#: Bytes of results on a page of a run's own tasks, about: a page ends with the one that goes beyond.
_OWN_PAGE = 4 * 1024 * 1024
#: Task runs of a graph that are read at once.
TOLD_PAGE = 2000
_CURSOR = re.compile(r"([0-9a-f]{1,15})-([0-9A-Za-z._:-]{1,64})")
_STATES = {state.value for state in TaskState}


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_LIMIT:
        raise BadRequest(f"limit is {limit}; it must be 1 to {PAGE_LIMIT}")


def _check_run(tx: Tx, run_id: UUID) -> None:
    if tx.conn.scalar(select(runs.c.id).where(runs.c.id == run_id)) is None:
        raise NotFound(f"there is no run {run_id}", "See `shunter run list`.")


# ---- for people


def list_tasks(
    tx: Tx, run_id: UUID, states: list[str], name: str | None, cursor: str | None, limit: int
) -> TaskPage:
    """One page of the task runs of a run, in the order in which they were made.

    Args:
        states: any of these; none: all.
        name: of the task.

    Raises:
        BadRequest: an unknown state, a limit out of bounds, a cursor that is none.
        NotFound: there is no such run.
    """
    _check_limit(limit)
    unknown = [state for state in states if state not in _STATES]
    if unknown:
        raise BadRequest(f"there is no state {unknown[0]!r} of tasks", f"States: {', '.join(TaskState)}.")
    order = (task_runs.c.created_at, task_runs.c.key)
    statement = select(task_runs).where(task_runs.c.run_id == run_id).order_by(*order).limit(limit + 1)
    standing = standing_of(tx, run_id)
    if states:
        statement = statement.where(standing.among(states))
    if name is not None:
        statement = statement.where(task_runs.c.name == name)
    if cursor is not None:
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise BadRequest("the cursor is not one that this server gave out", "Start again without it.")
        statement = statement.where(tuple_(*order) > tuple_(int(match[1], 16), match[2]))
    rows = tx.conn.execute(statement).all()
    if not rows:
        _check_run(tx, run_id)
    found = rows[:limit]
    following = f"{found[-1].created_at:x}-{found[-1].key}" if len(rows) > limit else None
    return TaskPage.model_construct(tasks=[_task(row, standing) for row in found], next=following)


def _task(row: Row[Any], standing: Standing) -> TaskRun:
    left = standing.left(row.state, row.attempt)
    error = standing.error(row.attempt) if left else None
    if row.error:
        error = TaskError.model_construct(**json.loads(row.error))
    return TaskRun.model_construct(
        id=row.key,
        name=row.name,
        flow=row.is_flow,
        parent=row.parent,
        state=TaskState.CANCELLED.value if left else row.state,
        attempt=row.tries,
        run_attempt=row.attempt,
        created_at=moment(row.created_at),
        started_at=maybe(row.started_at),
        ended_at=maybe(standing.ended_at(row.attempt) if left else row.ended_at),
        upstream=json.loads(row.upstream) if row.upstream else [],
        error=error,
        result=_result(row.result) if row.result else None,
        code=row.code,
    )


def _result(kept: str) -> TaskResult:
    told = json.loads(kept)
    where = "inline" if "i" in told or "p" in told else "file" if "f" in told else "url"
    pickled = "p" in told or told.get("z") == "p"
    size = told.get("n")
    url = told.get("url")
    return TaskResult.model_construct(
        kept=where,
        format="pickle" if pickled else "json",
        bytes=size if type(size) is int else None,
        url=_address(url) if isinstance(url, str) else None,
    )


def _address(url: str) -> str:
    """An address without what opens it: neither user and password nor a query."""
    scheme, found, rest = url.partition("://")
    bare = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = bare.partition("/")
    shown = f"{scheme}{found}{host.rpartition('@')[2]}{slash}{path}" if found else url
    return shown.encode(errors="replace").decode()


def task_count(tx: Tx, run_id: UUID, most: int) -> int:
    """How many task runs a run has; more than ``most`` are not counted.

    Raises:
        NotFound: there is no such run.
    """
    _check_run(tx, run_id)
    some = select(task_runs.c.key).where(task_runs.c.run_id == run_id).limit(most + 1).subquery()
    return tx.conn.scalar(select(func.count()).select_from(some)) or 0


def told(tx: Tx, run_id: UUID, after: str) -> list[Told]:
    """What is known of up to ``TOLD_PAGE`` task runs, by their keys, those after one of them."""
    standing = standing_of(tx, run_id)
    statement = (
        select(*(task_runs.c[column] for column in Told._fields))
        .where(task_runs.c.run_id == run_id, task_runs.c.key > after)
        .order_by(task_runs.c.key)
        .limit(TOLD_PAGE)
    )
    rows = (Told(*row) for row in tx.conn.execute(statement))
    return [
        row._replace(state=TaskState.CANCELLED.value, ended_at=standing.ended_at(row.attempt))
        if standing.left(row.state, row.attempt)
        else row
        for row in rows
    ]


_ABOUT = [column for column in artifacts.c if column.name != "data"]


def list_artifacts(tx: Tx, run_id: UUID) -> list[Artifact]:
    """What a run left, by key, without the data.

    Raises:
        NotFound: there is no such run.
    """
    size = func.length(artifacts.c.data).label("bytes")  # it is ASCII
    statement = select(*_ABOUT, size).where(artifacts.c.run_id == run_id).order_by(artifacts.c.key)
    rows = tx.conn.execute(statement).all()
    if not rows:
        _check_run(tx, run_id)
    return [_artifact(row, row.bytes) for row in rows]


def artifact(tx: Tx, run_id: UUID, key: str) -> Artifact:
    """One artifact of a run, with its data.

    Raises:
        NotFound: there is no such run, or it left none of that key.
    """
    its = (artifacts.c.run_id == run_id, artifacts.c.key == key)
    row = tx.conn.execute(select(artifacts).where(*its)).one_or_none()
    if row is None:
        _check_run(tx, run_id)
        raise NotFound(f"run {run_id} left no artifact {key!r}", "See `shunter run artifacts RUN`.")
    return _artifact(row, len(row.data)).model_copy(update={"data": json.loads(row.data)})


def _artifact(row: Any, size: int) -> Artifact:
    return Artifact.model_construct(
        key=row.key,
        kind=row.kind,
        description=row.description,
        task=row.task,
        attempt=row.attempt,
        at=moment(row.at),
        bytes=size,
    )


# ---- for the run itself


#: What came from a cache, which may have expired since, is as completed as what was executed.
_COMPLETED = (TaskState.COMPLETED.value, TaskState.CACHED.value)


def own_tasks(tx: Tx, run_id: UUID, attempt: int, after: str | None, limit: int) -> OwnTasks:
    """Task runs that attempts of a run completed and whose results were kept, by key.

    Args:
        attempt: that asks; the head is of the last one before it that had a flow.
        after: key of the last one that it has.

    Raises:
        BadRequest: a limit out of bounds.
    """
    _check_limit(limit)
    its = task_runs.c
    statement = (
        select(its.key, its.code, its.result)
        .where(its.run_id == run_id, its.state.in_(_COMPLETED), its.result.is_not(None))
        .order_by(its.key)
        .limit(limit + 1)
    )
    if after is not None:
        statement = statement.where(its.key > after)
    lines: list[dict[str, Any]] = _head(tx, run_id, attempt) if after is None else []
    size = count = 0
    last: str | None = None
    for row in tx.conn.execute(statement):
        if count == limit or size > _OWN_PAGE:
            return OwnTasks.model_construct(lines=lines, next=last)
        line = {"k": row.key, "s": "C", "r": json.loads(row.result)}
        lines.append(line | {"c": row.code} if row.code else line)
        size, count, last = size + len(row.result), count + 1, row.key
    return OwnTasks.model_construct(lines=lines, next=None)


def _head(tx: Tx, run_id: UUID, attempt: int) -> list[dict[str, Any]]:
    row = tx.conn.execute(
        select(journals.c.flow, journals.c.code)
        .where(journals.c.run_id == run_id, journals.c.attempt < attempt, journals.c.flow.is_not(None))
        .order_by(journals.c.attempt.desc())
        .limit(1)
    ).one_or_none()
    return [] if row is None else [{"flow": row.flow, "c": row.code or ""}]
