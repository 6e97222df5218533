"""What an end means: a pure function from what happened to state, cause and message."""

from __future__ import annotations

from enum import StrEnum

from shunter_infrastructure.launcher import Exit
from shunter_work_pools.contracts.states import OWN_FAULT_SIGNALS, AttemptState, Cause, cause_fits

#: Characters of a message; the contract allows 10,000.
MESSAGE_LIMIT = 9_000


class Stop(StrEnum):
    """Why the agent itself stopped an attempt."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    START_TIMEOUT = "start_timeout"
    EVICT = "evict"


Verdict = tuple[AttemptState, Cause | None, str | None]

_STOPPED: dict[Stop, tuple[AttemptState, Cause]] = {
    Stop.CANCEL: (AttemptState.CANCELLED, Cause.CANCELLED),
    Stop.TIMEOUT: (AttemptState.TIMED_OUT, Cause.TIMEOUT),
    Stop.START_TIMEOUT: (AttemptState.CRASHED, Cause.START_TIMEOUT),
    Stop.EVICT: (AttemptState.CRASHED, Cause.EVICTED),
}
_EVICTED = "its agent was told to stop, and did not wait longer"


def verdict(end: Exit, stopped: Stop | None) -> Verdict:
    """State, cause and message of an attempt whose work has ended.

    Args:
        end: what the launcher found.
        stopped: why the agent had asked it to stop before it ended; None if it had not.
    """
    if end.error is not None and not (stopped and end.error is Cause.DELETED):
        # The end itself is not known, or the engine's doing. (An engine that deletes what it is told
        # to stop says nothing new.)
        cause = end.error if cause_fits(AttemptState.CRASHED, end.error) else Cause.KEEPER_LOST
        return AttemptState.CRASHED, cause, short(end.message)
    if _succeeded(end) and stopped in (None, Stop.CANCEL, Stop.EVICT):
        return AttemptState.COMPLETED, None, short(end.message)
    if stopped is not None:
        state, cause = _STOPPED[stopped]
        return state, cause, short(end.message or (_EVICTED if stopped is Stop.EVICT else None))
    if end.oom:
        return AttemptState.CRASHED, Cause.OOM, short(end.message or "killed for memory by the kernel")
    if end.exception:
        return AttemptState.FAILED, Cause.EXCEPTION, short(end.message)
    if end.signal is not None:
        own = end.signal in OWN_FAULT_SIGNALS
        message = short(end.message or f"ended by {end.signal}")
        return (AttemptState.FAILED if own else AttemptState.CRASHED), Cause.SIGNAL, message
    if end.exit_code is None:
        message = end.message or "how it ended cannot be known"
        return AttemptState.CRASHED, Cause.KEEPER_LOST, short(message)
    return AttemptState.FAILED, Cause.EXIT_CODE, short(end.message or f"exit code {end.exit_code}")


def never_started(stopped: Stop, note: str = "", cause: Cause | None = None) -> Verdict:
    """State, cause and message of an attempt that was stopped before anything of it ran.

    Args:
        note: what its launch waited for, in the engine's words.
        cause: what that is, where it says more than that the time ran out.
    """
    state, usual = _STOPPED[stopped]
    if stopped is Stop.START_TIMEOUT:
        fits = cause is not None and cause_fits(state, cause)
        return state, cause if fits else usual, short(note or None)
    told = {Stop.CANCEL: "it was stopped before it started", Stop.EVICT: _EVICTED}
    return state, usual, told.get(stopped)


def _succeeded(end: Exit) -> bool:
    return end.exit_code == 0 and end.signal is None and not end.oom and not end.exception


def short(message: str | None) -> str | None:
    """A message as the server takes it."""
    if message is None:
        return None
    # What cannot be said in UTF-8 (an exception may hold a lone surrogate) cannot travel.
    text = message.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + " [...]"
