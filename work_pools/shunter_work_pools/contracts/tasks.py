"""What a flow's tasks do, as runs tell it (journals, results) and as people see it (task runs, graphs, artifacts).

A journal is a stream of bytes by offset, as output is: lines that ``flows/shunter/journal.py`` describes. The server
takes whole lines. What it answers as ``size`` is where to go on: the end of the last whole line that it has.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

from shunter_work_pools.contracts.agents import LOG_UPLOAD_LIMIT
from shunter_work_pools.contracts.base import Contract, Instant, Json

#: Media type of a piece of a journal or a result that a run, or its agent, sends by itself.
BYTES_MEDIA_TYPE = "application/octet-stream"
#: Bytes of one piece of a journal or a result.
PIECE_LIMIT = LOG_UPLOAD_LIMIT
#: Bytes of a journal's line, a little less, so that what goes beside it has room: so much without an end is passed over.
LINE_LIMIT = PIECE_LIMIT - 4096
#: Bytes of one result that is not in the journal itself.
RESULT_FILE_LIMIT = 2 * 1024**3
#: Bytes of a journal that are taken of one attempt; what comes after is counted and not kept.
JOURNAL_LIMIT = 2 * 1024**3
#: Bytes of one artifact, and how many one run has; what goes beyond is not kept.
ARTIFACT_LIMIT = 256 * 1024
ARTIFACTS_LIMIT = 1000
#: Pattern of a result's name: BLAKE2b of its bytes, 20 bytes in hex.
RESULT_NAME = r"^[0-9a-f]{40}$"
#: Header of a piece of a result: bytes that all of it has.
RESULT_SIZE_HEADER = "Shunter-Result-Size"


class TaskState(StrEnum):
    """How a task run stands, or ended."""

    PENDING = "Pending"
    RUNNING = "Running"
    RETRYING = "Retrying"
    COMPLETED = "Completed"
    CACHED = "Cached"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    CANCELLED = "Cancelled"


#: The letters of a journal.
TASK_STATES = {
    "P": TaskState.PENDING,
    "R": TaskState.RUNNING,
    "T": TaskState.RETRYING,
    "C": TaskState.COMPLETED,
    "H": TaskState.CACHED,
    "F": TaskState.FAILED,
    "S": TaskState.SKIPPED,
    "X": TaskState.CANCELLED,
}
TASK_ENDS = frozenset(
    {TaskState.COMPLETED, TaskState.CACHED, TaskState.FAILED, TaskState.SKIPPED, TaskState.CANCELLED}
)
#: Ends to which a flow comes by itself. One whose pod goes is told to stop first, and is Cancelled before its run crashes.
OWN_ENDS = TASK_ENDS - {TaskState.CANCELLED}


class JournalSize(Contract):
    """How far the server has the journal of an attempt.

    Attributes:
        size: offset after the last whole line that it has; go on from there.
        full: what comes after is not kept: send no more.
        crash_hooks: the flow that it is of has hooks for a crash, as far as was known before.
    """

    size: int
    full: bool = False
    crash_hooks: bool = False


class ResultSize(Contract):
    """How much of a result the server has.

    Attributes:
        size: bytes; go on from there.
        complete: it has all of them, and they are what their name says.
        refused: why it takes no more of it, if it does not.
    """

    size: int
    complete: bool = False
    refused: str | None = None


class ResultSizes(Contract):
    """How much of some results the server has, in the order of what was sent."""

    results: list[ResultSize]


class OwnTasks(Contract):
    """Task and flow runs that earlier attempts completed and whose results were kept, some of them.

    Attributes:
        lines: as a journal has them (``k``, ``s``, ``r``, and ``c`` where it is known), in the order of their keys. On
            the first page the first one may be the head of the last journal before (``flow``, ``c``), without a key.
        next: give it as ``after`` to have more; None at the end.
    """

    lines: list[dict[str, Json]]
    next: str | None = None


class TaskError(Contract):
    """Why a task run ended without a value."""

    type: str = ""
    message: str = ""
    traceback: str = ""


class TaskResult(Contract):
    """Where the value of a task run is; the value itself is for attempts of its run only.

    Attributes:
        kept: ``inline`` (in the database), ``file`` (on the server) or ``url``.
        format: ``json`` or ``pickle``.
        bytes: how large it is, where that is told.
        url: where it is, if it is elsewhere.
    """

    kept: str
    format: str
    bytes: int | None = None
    url: str | None = None


class TaskRun(Contract):
    """One run of a task, or of a flow, within a run.

    Attributes:
        id: its key; the same in each attempt of the run.
        name: of the task or flow.
        flow: it is a flow.
        parent: id of the flow or task around it.
        state: a ``TaskState``.
        attempt: number of its try; 0 before the first.
        run_attempt: the attempt of the run that it was last seen in.
        created_at: when it was first told of.
        upstream: ids of those whose values it was given, or waited for.
        code: version of its code.
    """

    id: str
    name: str
    flow: bool = False
    parent: str | None = None
    state: str
    attempt: int
    run_attempt: int
    created_at: Instant
    started_at: Instant | None = None
    ended_at: Instant | None = None
    upstream: list[str] = []
    error: TaskError | None = None
    result: TaskResult | None = None
    code: str | None = None


class TaskPage(Contract):
    """One page of task runs, in the order in which they were made.

    Attributes:
        next: cursor of the next page; None at the end.
    """

    tasks: list[TaskRun]
    next: str | None = None


class GraphNode(Contract):
    """Task runs of a graph that are equals: the same task, below and after the same ones.

    Attributes:
        id: key of the first of them.
        count: how many there are.
        states: how many are in which state.
        parent: id of the node around them.
        started_at: of the first of them.
        ended_at: of the last of them; None while one has not ended.
    """

    id: str
    name: str
    flow: bool = False
    count: int = 1
    states: dict[str, int]
    parent: str | None = None
    started_at: Instant | None = None
    ended_at: Instant | None = None


class TaskGraph(Contract):
    """The graph of a run's tasks; upstream nodes come before those that depend on them.

    Attributes:
        edges: pairs of ids, from upstream to what depends on it.
        tasks: how many task runs there are in it.
    """

    run: UUID
    nodes: list[GraphNode]
    edges: list[tuple[str, str]]
    tasks: int = 0


class Artifact(Contract):
    """What a run left for people to look at.

    Attributes:
        kind: ``table``, ``markdown``, ``link`` or ``image``.
        task: id of the task or flow run that left it.
        attempt: of the run.
        bytes: size of its data as JSON.
        data: rows, text, or an address; None in lists.
    """

    key: str
    kind: str
    description: str = ""
    task: str | None = None
    attempt: int
    at: Instant
    bytes: int
    data: Any = None


class ArtifactList(Contract):
    """The artifacts of a run by key, without their data."""

    artifacts: list[Artifact]
