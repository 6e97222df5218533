"""The states of runs and attempts, their causes, and the one table of allowed transitions.

Everything that changes a state asks this module first; ``docs/states.md`` is tested against it.
Who moves what on:

* a *run* is made ``Scheduled`` by a user or the scheduler, becomes ``Active`` when the queue grants
  an attempt of it, and ends when its last attempt ends (or before it starts, by a user);
* an *attempt* is made ``Claimed`` by the queue; from then on its agent reports it forward, a user may
  ask for ``Cancelling``, and the reaper ends what nobody will ever report on.
"""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """State of a run. While a run is ``Active`` the API shows the state of its attempt."""

    SCHEDULED = "Scheduled"
    ACTIVE = "Active"
    RETRYING = "Retrying"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CRASHED = "Crashed"
    CANCELLED = "Cancelled"
    TIMED_OUT = "TimedOut"


class AttemptState(StrEnum):
    """State of one try of a run."""

    CLAIMED = "Claimed"
    STARTING = "Starting"
    RUNNING = "Running"
    CANCELLING = "Cancelling"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CRASHED = "Crashed"
    CANCELLED = "Cancelled"
    TIMED_OUT = "TimedOut"


class Cause(StrEnum):
    """Why something ended. ``Completed`` has none; every other end has exactly one."""

    # Failed: the user's code said no.
    EXIT_CODE = "exit_code"
    EXCEPTION = "exception"
    SIGNAL = "signal"  # under Failed a fault of its own (SEGV, ABRT, ...), under Crashed from outside
    # Crashed: the infrastructure said no.
    OOM = "oom"
    EVICTED = "evicted"
    PREEMPTED = "preempted"
    IMAGE_PULL = "image_pull"
    UNSCHEDULABLE = "unschedulable"
    START_FAILED = "start_failed"
    START_TIMEOUT = "start_timeout"
    AGENT_LOST = "agent_lost"
    NODE_LOST = "node_lost"
    KEEPER_LOST = "keeper_lost"
    SOURCE = "source"
    DELETED = "deleted"
    REJECTED = "rejected"
    # TimedOut
    TIMEOUT = "timeout"
    # Cancelled
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    SUPERSEDED = "superseded"


class Actor(StrEnum):
    """Who makes a transition."""

    USER = "user"
    SCHEDULER = "scheduler"
    QUEUE = "queue"
    AGENT = "agent"
    REAPER = "reaper"


RUN_ENDS = frozenset(
    {RunState.COMPLETED, RunState.FAILED, RunState.CRASHED, RunState.CANCELLED, RunState.TIMED_OUT}
)
ATTEMPT_ENDS = frozenset(AttemptState(end.value) for end in RUN_ENDS)
ATTEMPT_LIVE = frozenset(AttemptState) - ATTEMPT_ENDS

#: Signals that a process raises by its own fault; any other deadly signal came from outside.
OWN_FAULT_SIGNALS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"})

#: Causes with which an agent says that it could not even begin: another one may well be able to.
LAUNCH_FAILURES = frozenset(
    {Cause.START_FAILED, Cause.START_TIMEOUT, Cause.SOURCE, Cause.REJECTED, Cause.IMAGE_PULL}
)

#: End state x causes it may have. An empty set means: no cause.
CAUSES: dict[AttemptState, frozenset[Cause]] = {
    AttemptState.COMPLETED: frozenset(),
    AttemptState.FAILED: frozenset({Cause.EXIT_CODE, Cause.EXCEPTION, Cause.SIGNAL}),
    AttemptState.CRASHED: frozenset(
        {
            Cause.SIGNAL,
            Cause.OOM,
            Cause.EVICTED,
            Cause.PREEMPTED,
            Cause.IMAGE_PULL,
            Cause.UNSCHEDULABLE,
            Cause.START_FAILED,
            Cause.START_TIMEOUT,
            Cause.AGENT_LOST,
            Cause.NODE_LOST,
            Cause.KEEPER_LOST,
            Cause.SOURCE,
            Cause.DELETED,
            Cause.REJECTED,
        }
    ),
    AttemptState.TIMED_OUT: frozenset({Cause.TIMEOUT}),
    AttemptState.CANCELLED: frozenset({Cause.CANCELLED, Cause.SKIPPED, Cause.SUPERSEDED}),
}

_A, _R = AttemptState, RunState
_AGENT_ENDS: dict[AttemptState, frozenset[Actor]] = {end: frozenset({Actor.AGENT}) for end in ATTEMPT_ENDS}
# The reaper ends an attempt of an agent that was given up, the user one that is still unreported there.
_AGENT_ENDS[_A.CRASHED] = frozenset({Actor.AGENT, Actor.REAPER})
_AGENT_ENDS[_A.CANCELLED] = frozenset({Actor.AGENT, Actor.REAPER})

#: (from, to) -> who may make it. ``None`` as from: the attempt is made.
ATTEMPT_TRANSITIONS: dict[tuple[AttemptState | None, AttemptState], frozenset[Actor]] = {
    (None, _A.CLAIMED): frozenset({Actor.QUEUE}),
    (_A.CLAIMED, _A.STARTING): frozenset({Actor.AGENT}),
    (_A.STARTING, _A.RUNNING): frozenset({Actor.AGENT}),
    # The queue stops an active run where a limit says that a newer one takes its place.
    (_A.CLAIMED, _A.CANCELLING): frozenset({Actor.USER, Actor.QUEUE}),
    (_A.STARTING, _A.CANCELLING): frozenset({Actor.USER, Actor.QUEUE}),
    (_A.RUNNING, _A.CANCELLING): frozenset({Actor.USER, Actor.QUEUE}),
    **{(live, end): who for live in ATTEMPT_LIVE for end, who in _AGENT_ENDS.items()},
}

_ENDED_BY: dict[RunState, frozenset[Actor]] = {RunState(end.value): who for end, who in _AGENT_ENDS.items()}

#: (from, to) -> who may make it. ``None`` as from: the run is made.
RUN_TRANSITIONS: dict[tuple[RunState | None, RunState], frozenset[Actor]] = {
    (None, _R.SCHEDULED): frozenset({Actor.USER, Actor.SCHEDULER}),
    (_R.SCHEDULED, _R.ACTIVE): frozenset({Actor.QUEUE}),
    (_R.RETRYING, _R.ACTIVE): frozenset({Actor.QUEUE}),
    # Given back before it started: the same attempt will be granted again under a higher epoch.
    (_R.ACTIVE, _R.SCHEDULED): frozenset({Actor.AGENT, Actor.REAPER}),
    (_R.ACTIVE, _R.RETRYING): frozenset({Actor.AGENT, Actor.REAPER}),
    **{(_R.ACTIVE, end): who for end, who in _ENDED_BY.items()},
    (_R.SCHEDULED, _R.CANCELLED): frozenset({Actor.USER, Actor.QUEUE}),
    (_R.RETRYING, _R.CANCELLED): frozenset({Actor.USER, Actor.QUEUE}),
    # ``run retry``: the same run, next attempt. A Completed run has nothing to retry.
    **{(end, _R.SCHEDULED): frozenset({Actor.USER}) for end in RUN_ENDS - {_R.COMPLETED}},
}


def may_move_run(before: RunState | None, after: RunState, actor: Actor) -> bool:
    """Whether ``actor`` may move a run from ``before`` to ``after``."""
    return actor in RUN_TRANSITIONS.get((before, after), frozenset())


def may_move_attempt(before: AttemptState | None, after: AttemptState, actor: Actor) -> bool:
    """Whether ``actor`` may move an attempt from ``before`` to ``after``."""
    return actor in ATTEMPT_TRANSITIONS.get((before, after), frozenset())


def cause_fits(end: AttemptState, cause: Cause | None) -> bool:
    """Whether an attempt that ended in ``end`` may carry ``cause``; ``end`` must be an end state."""
    allowed = CAUSES[end]
    return cause is None if not allowed else cause in allowed
