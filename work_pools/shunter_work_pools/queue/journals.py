"""Journals of flows: whole lines become rows, in the transaction that moves the journal's offset.

What a line says is in ``flows/shunter/journal.py``. A line that is none, or says what cannot be, is passed over: a
journal must never be stuck at one. Of the lines about a task the last one counts; those of an earlier attempt that come
late change nothing of what a later one said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import and_, bindparam, case, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from shunter_work_pools.contracts.attempts import Progress
from shunter_work_pools.contracts.tasks import (
    ARTIFACT_LIMIT,
    ARTIFACTS_LIMIT,
    LINE_LIMIT,
    OWN_ENDS,
    RESULT_NAME,
    TASK_ENDS,
    TASK_STATES,
)
from shunter_work_pools.masking import Mask
from shunter_work_pools.queue.progress import set_progress
from shunter_work_pools.storage.schema import artifacts, journals, runs, task_runs
from shunter_work_pools.storage.store import Tx

#: Lines that one transaction takes at the most: claims wait for it, a few milliseconds.
BATCH = 500
_KEY = re.compile(r"[0-9A-Za-z._:-]{1,64}")
_ARTIFACT = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_RESULT = re.compile(RESULT_NAME)
_KINDS = frozenset({"table", "markdown", "link", "image"})
#: The last moment of the calendar, and the most tries, that a line may name.
_LATEST = 253_402_300_799_999_999
_MOST = 2**31 - 1
_NAME = 1000
#: Lists in lists that a value may have.
_DEEPEST = 100
#: What of an exception is kept, in characters.
_ERROR = {"type": 500, "message": 4000, "traceback": 8000}
#: What a line that says what cannot be comes to: it is of another type, too large, or too deep.
_WRONG = (ValueError, TypeError, OverflowError, RecursionError)
_UNSAFE = re.compile("[\0\ud800-\udfff]")

Line = dict[str, Any]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


# Made once: there are many lines.
_DECODER = json.JSONDecoder(parse_constant=_refuse)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass
class Piece:
    """Some whole lines of a journal, as rows.

    Attributes:
        start, end: their offsets.
        tasks: by key, of several lines the last.
        artifacts: likewise.
        progress: the last that was told.
        head: flow, version of its code, and whether it has hooks for a crash, of the first line that names one.
    """

    start: int
    end: int
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: Progress | None = None
    head: tuple[str, str | None, bool] | None = None


# ---- lines


def pieces(data: bytes, offset: int, mask: Mask) -> Iterator[Piece]:
    """The whole lines of some bytes of a journal, ``BATCH`` at a time; ``offset`` is where they begin.

    Args:
        mask: what is not to be seen of names, errors, artifacts and progress. (Results are for the run itself.)
    """
    at = 0
    while at < len(data):
        piece = Piece(offset + at, offset + at)
        for _ in range(BATCH):
            end = data.find(b"\n", at) + 1
            if not end:
                break
            _read(piece, data[at : end - 1], mask)
            at = end
        else:
            piece.end = offset + at
            yield piece
            continue
        if len(data) - at >= LINE_LIMIT:
            at = len(data)  # no line is as long: its end will be passed over, too
        piece.end = offset + at
        if piece.end > piece.start:
            yield piece
        return


def _read(piece: Piece, raw: bytes, mask: Mask) -> None:
    try:
        line = _DECODER.decode(raw.decode())
    except _WRONG:
        return
    if not isinstance(line, dict):
        return
    try:
        if "s" in line:
            _read_task(piece, line, mask)
        elif "art" in line:
            _read_artifact(piece, line, mask)
        elif "pr" in line:
            _read_progress(piece, line, mask)
        elif "flow" in line and piece.head is None:
            piece.head = (_text(line["flow"], _NAME), _code(line), line.get("h") is True)
    except _WRONG:
        return


def _read_task(piece: Piece, line: Line, mask: Mask) -> None:
    key, state = _key(line.get("k")), TASK_STATES.get(line["s"])
    if state is None:
        raise ValueError("no state")
    at = _whole(line.get("at"), _LATEST)
    began = line.get("b")
    ended = state in TASK_ENDS
    if began is not None:
        began = _whole(began, _LATEST)
    elif line["s"] == "R":
        began = at
    result, error = line.get("r"), line.get("e")
    before = piece.tasks.get(key)
    created = min(at, began) if began is not None else at
    if before is not None:
        created = min(created, before["created_at"])
        if began is None:
            began = before["started_at"]
    parent = line.get("p")
    piece.tasks[key] = {
        "key": key,
        "parent": _key(parent) if parent else None,
        "name": mask.text(_text(line.get("t"), _NAME)),
        "is_flow": line.get("y") == "flow",
        "state": state.value,
        "tries": _whole(line.get("n", 0), _MOST),
        "created_at": created,
        "started_at": began,
        "ended_at": at if ended else None,
        "upstream": _keys(line["u"]) if line.get("u") else None,
        "error": _error(error, mask) if isinstance(error, dict) else None,
        "result": _result(result) if isinstance(result, dict) else None,
        "code": _code(line),
    }


def _result(told: Line) -> str | None:
    """What is kept of a value, and where; None: it says nothing that leads to it."""
    if "f" in told and not (isinstance(told["f"], str) and _RESULT.fullmatch(told["f"])):
        return None
    if not any(where in told for where in ("i", "p", "f", "url")):
        return None
    return _json(told)


def _error(told: Line, mask: Mask) -> str:
    return _json({part: mask.text(_text(told.get(part), most)) for part, most in _ERROR.items()})


def _read_artifact(piece: Piece, line: Line, mask: Mask) -> None:
    about = line["art"]
    if not isinstance(about, dict):
        raise ValueError("no artifact")
    name, kind = about.get("key"), about.get("kind")
    if not isinstance(name, str) or not _ARTIFACT.fullmatch(name) or kind not in _KINDS:
        raise ValueError("no artifact")
    data = _json(_seen(mask.document(about.get("data"))))
    if len(data) > ARTIFACT_LIMIT + 1024:  # of blanks there may be others than where it was made
        raise ValueError("too large")
    piece.artifacts[name] = {
        "key": name,
        "kind": kind,
        "description": mask.text(_text(about.get("description"), 4000)),
        "task": _key(line["k"]) if line.get("k") else None,
        "at": _whole(line.get("at"), _LATEST),
        "data": data,
    }


def _seen(value: Any) -> Any:
    """A value that is to be shown, without what is no Unicode."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(_UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)) if _UNSAFE.search(text) else value


def _read_progress(piece: Piece, line: Line, mask: Mask) -> None:
    about = line["pr"]
    if not isinstance(about, dict):
        raise ValueError("no progress")
    done, total, percent = about.get("done"), about.get("total"), about.get("percent")
    count = f"{_whole(done, _LATEST)}" + (f" of {_whole(total, _LATEST)}" if total is not None else "")
    text = mask.text(_text(about.get("text"), 900))
    piece.progress = Progress(
        percent=None if percent is None else min(100.0, max(0.0, float(percent))),
        note=f"{text}: {count}" if text else count,
    )


def _key(told: Any) -> str:
    if not isinstance(told, str) or not _KEY.fullmatch(told):
        raise ValueError("no key")
    return told


def _keys(told: Any) -> str:
    if not isinstance(told, list):
        raise ValueError("no keys")
    return _json([_key(one) for one in told])


def _whole(told: Any, most: int) -> int:
    if type(told) is not int or not 0 <= told <= most:
        raise ValueError("no number that can be")
    return told


def _text(told: Any, most: int) -> str:
    """A text that both stores can keep."""
    if told is None:
        return ""
    if not isinstance(told, str):
        raise ValueError("no text")
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", told[:most])


def _code(line: Line) -> str | None:
    code = line.get("c")
    return _text(code, 64) or None


def _json(value: Any) -> str:
    """As JSON of ASCII, which both stores keep as it is.

    Raises:
        ValueError: a number in it is none of JSON, or it is deeper than whoever reads it could follow.
    """
    text = _ENCODER.encode(value)
    if text.count("[") + text.count("{") > _DEEPEST and not _within(value, _DEEPEST):
        raise ValueError("too deep")
    return text


def _within(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_within(one, levels - 1) for one in parts)


# ---- rows

_OFFSET = (
    select(journals.c.offset)
    .where(journals.c.run_id == bindparam("run"), journals.c.attempt == bindparam("number"))
    .with_for_update()
)
_MOVE = (
    update(journals)
    .where(journals.c.run_id == bindparam("run"), journals.c.attempt == bindparam("number"))
    .values(
        offset=bindparam("end"),
        flow=func.coalesce(journals.c.flow, bindparam("named")),
        code=case((journals.c.flow.is_(None), bindparam("version")), else_=journals.c.code),
        crash_hooks=case((journals.c.flow.is_(None), bindparam("hooks")), else_=journals.c.crash_hooks),
    )
)
#: Whoever deletes a run waits, and nothing comes in of one that is gone.
_THERE = select(runs.c.id).where(runs.c.id == bindparam("run")).with_for_update(read=True, key_share=True)


def going_on(tx: Tx, runs_again: Collection[UUID]) -> set[UUID]:
    """Those of some runs of which an earlier attempt has left a journal."""
    if not runs_again:
        return set()
    return set(tx.conn.scalars(select(journals.c.run_id).where(journals.c.run_id.in_(runs_again)).distinct()))


def known(tx: Tx, run_id: UUID, attempt: int) -> tuple[int, bool]:
    """How far the journal of an attempt has come (0: there is nothing of it), and whether its flow has hooks for a crash."""
    wanted = select(journals.c.offset, journals.c.crash_hooks)
    found = tx.conn.execute(wanted.where(journals.c.run_id == run_id, journals.c.attempt == attempt)).first()
    return (0, False) if found is None else (found.offset, found.crash_hooks)


def a_flow_has_ended(tx: Tx, run_id: UUID, attempt: int) -> bool:
    """Whether an outermost flow of an attempt has come to an end by itself."""
    its = task_runs.c
    ended = select(its.key).where(
        its.run_id == run_id,
        its.attempt == attempt,
        its.is_flow,
        its.parent.is_(None),
        its.state.in_([state.value for state in OWN_ENDS]),
    )
    return tx.conn.scalar(ended.limit(1)) is not None


def take(tx: Tx, run_id: UUID, attempt: int, piece: Piece, may: Callable[[Tx], bool]) -> int | None:
    """Keep a piece of a journal that begins where it has come to; how far it has come.

    One that begins elsewhere changes nothing: somebody else brought some of it meanwhile.

    Args:
        may: whether whoever brings it holds, or held, the attempt.

    Returns:
        None: he may not, or there is no such run any more.
    """
    if tx.conn.scalar(_THERE, {"run": run_id}) is None or not may(tx):
        return None
    its = {"run": run_id, "number": attempt}
    offset = tx.conn.scalar(_OFFSET, its)
    if offset is None:
        tx.conn.execute(_begin(tx.postgres), {"run_id": run_id, "attempt": attempt, "offset": 0})
        offset = tx.conn.scalar(_OFFSET, its) or 0
    if offset != piece.start:
        return int(offset)
    if piece.tasks:
        rows = [{"run_id": run_id, "attempt": attempt, **row} for row in piece.tasks.values()]
        tx.conn.execute(_keep_tasks(tx.postgres), rows)
    if piece.artifacts:
        _keep_artifacts(tx, run_id, attempt, piece.artifacts)
    if piece.progress is not None:
        set_progress(tx, run_id, attempt, piece.progress)
    flow, code, hooks = piece.head or (None, None, False)
    tx.conn.execute(_MOVE, its | {"end": piece.end, "named": flow, "version": code, "hooks": hooks})
    tx.changes.runs.add(run_id)
    return piece.end


def _keep_artifacts(tx: Tx, run_id: UUID, attempt: int, told: dict[str, dict[str, Any]]) -> None:
    there = set(tx.conn.scalars(select(artifacts.c.key).where(artifacts.c.run_id == run_id)))
    room = ARTIFACTS_LIMIT - len(there)
    kept = []
    for name, row in told.items():
        if name not in there:
            if room <= 0:
                continue
            room -= 1
        kept.append({"run_id": run_id, "attempt": attempt, **row})
    if kept:
        tx.conn.execute(_keep_each_artifact(tx.postgres), kept)


def _upsert(postgres: bool) -> Any:
    return postgresql.insert if postgres else sqlite.insert


@cache
def _begin(postgres: bool) -> Any:
    return _upsert(postgres)(journals).on_conflict_do_nothing()


@cache
def _keep_tasks(postgres: bool) -> Any:
    statement = _upsert(postgres)(task_runs)
    new, old = statement.excluded, task_runs.c
    values = {column.name: new[column.name] for column in task_runs.c if not column.primary_key}
    earlier = func.least if postgres else func.min
    values["created_at"] = earlier(new.created_at, old.created_at)
    same = and_(new.started_at.is_(None), new.attempt == old.attempt)
    values["started_at"] = case((same, old.started_at), else_=new.started_at)
    return statement.on_conflict_do_update(
        index_elements=["run_id", "key"], set_=values, where=new.attempt >= old.attempt
    )


@cache
def _keep_each_artifact(postgres: bool) -> Any:
    statement = _upsert(postgres)(artifacts)
    new = statement.excluded
    values = {column.name: new[column.name] for column in artifacts.c if not column.primary_key}
    return statement.on_conflict_do_update(
        index_elements=["run_id", "key"], set_=values, where=new.attempt >= artifacts.c.attempt
    )
