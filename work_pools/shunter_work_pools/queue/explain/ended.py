"""How a run ended: one sentence for each state and cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select

from shunter_work_pools.contracts.explanations import Code
from shunter_work_pools.contracts.states import Actor, AttemptState, Cause, RunState
from shunter_work_pools.queue.explain.reason import Reason, at_utc, lasting, message, short
from shunter_work_pools.storage.schema import attempts, events
from shunter_work_pools.storage.store import Tx


@dataclass(frozen=True)
class _End:
    """What is said of a cause.

    Attributes:
        words: to follow "it failed: ", with ``{exit_code}`` and ``{signal}`` of the attempt, and ``{message}``.
        step: what to do, with ``{run}``, ``{agent}`` and ``{deployment}``.
        tells: whether the attempt's message follows.
    """

    code: Code
    words: str
    step: str
    tells: bool = True


_LOOK = "Read what it wrote: `shunter run logs {run}`. Then `shunter run retry {run}`."
_RETRY = "`shunter run retry {run}` tries it again."
_MEND = "Mend that, then `shunter run retry {run}`."

_ENDS = {
    (RunState.FAILED, Cause.EXIT_CODE): _End(
        Code.EXIT_CODE, "its command ended with exit code {exit_code}", _LOOK
    ),
    (RunState.FAILED, Cause.EXCEPTION): _End(Code.EXCEPTION, "its function raised an exception", _LOOK),
    (RunState.FAILED, Cause.SIGNAL): _End(
        Code.SIGNAL_OWN, "its process died of a fault of its own ({signal})", _LOOK
    ),
    (RunState.CRASHED, Cause.SIGNAL): _End(
        Code.SIGNAL_OUTSIDE,
        "its process was killed from outside ({signal})",
        "Find out who did that on the machine of {agent}. " + _RETRY,
    ),
    (RunState.CRASHED, Cause.OOM): _End(
        Code.OOM,
        "it was killed because memory ran out",
        "Deploy it with a higher --memory-limit, or where there is more memory (--need memory=...); then "
        "`shunter run start {deployment}`.",
    ),
    (RunState.CRASHED, Cause.EVICTED): _End(Code.EVICTED, "its place was taken back", _RETRY),
    (RunState.CRASHED, Cause.PREEMPTED): _End(
        Code.PREEMPTED, "something of a higher priority took its place", _RETRY
    ),
    (RunState.CRASHED, Cause.IMAGE_PULL): _End(Code.IMAGE_PULL, "its image could not be had", _MEND),
    (RunState.CRASHED, Cause.UNSCHEDULABLE): _End(
        Code.UNSCHEDULABLE, "no node of the cluster could take it", _MEND
    ),
    (RunState.CRASHED, Cause.START_FAILED): _End(Code.START_FAILED, "it could not be started", _MEND),
    (RunState.CRASHED, Cause.START_TIMEOUT): _End(Code.START_TIMEOUT, "it did not start in time", _MEND),
    (RunState.CRASHED, Cause.AGENT_LOST): _End(
        Code.AGENT_LOST,
        "{message}",
        "Make sure that nothing of it still runs on the machine of {agent}, then `shunter run retry {run}`.",
        tells=False,
    ),
    (RunState.CRASHED, Cause.NODE_LOST): _End(Code.NODE_LOST, "the machine under it is gone", _RETRY),
    (RunState.CRASHED, Cause.KEEPER_LOST): _End(
        Code.KEEPER_LOST,
        "what watched over it died with it",
        "See how far it came: `shunter run logs {run}`. Then `shunter run retry {run}`.",
    ),
    (RunState.CRASHED, Cause.SOURCE): _End(Code.SOURCE, "its code or environment could not be had", _MEND),
    (RunState.CRASHED, Cause.DELETED): _End(Code.DELETED, "somebody deleted it under its agent", _RETRY),
    (RunState.CRASHED, Cause.REJECTED): _End(Code.REJECTED, "the infrastructure refused to make it", _MEND),
    (RunState.TIMED_OUT, Cause.TIMEOUT): _End(
        Code.TIMEOUT,
        "it took longer than its deployment allows",
        "See what took so long: `shunter run logs {run}`. Deploy it with a longer --timeout, or " + _RETRY,
    ),
    (RunState.CANCELLED, Cause.CANCELLED): _End(Code.CANCELLED, "it was stopped, as somebody asked", _RETRY),
    (RunState.CANCELLED, Cause.SKIPPED): _End(
        Code.SKIPPED, "it was not to be started any more, as somebody asked", _RETRY
    ),
    (RunState.CANCELLED, Cause.SUPERSEDED): _End(
        Code.SUPERSEDED, "{message}", "Nothing: its deployment or a limit wants it so.", tells=False
    ),
}
_WAITING = _End(Code.CANCELLED_WAITING, "somebody asked for that while it waited", _RETRY)
_WHEN_FULL = _End(Code.SKIPPED_WHEN_FULL, "{message}", "Nothing: a limit wants it so. " + _RETRY, tells=False)
_HOW = {
    RunState.FAILED: "failed",
    RunState.CRASHED: "crashed",
    RunState.TIMED_OUT: "timed out",
    RunState.CANCELLED: "was cancelled",
}


def last_attempt(tx: Tx, run_id: UUID) -> Row[Any]:
    """The last attempt of a run that ended."""
    newest = select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.number.desc()).limit(1)
    return tx.conn.execute(newest).one()


def how_it_ended(attempt: Row[Any]) -> str:
    """``failed (exit_code): its command ended with exit code 3``."""
    state = RunState(attempt.state)
    end = _ENDS[state, Cause(attempt.cause)]
    return f"{_HOW[state]}, as {_words(end, attempt, attempt.message)}"


def _words(end: _End, attempt: Row[Any] | None, said: str | None) -> str:
    code = attempt.exit_code if attempt is not None and attempt.exit_code is not None else "unknown"
    signal = attempt.signal if attempt is not None and attempt.signal else "unknown signal"
    text = message(said)
    words = end.words.format(exit_code=code, signal=signal, message=text or "why is not known")
    # What agents say of an end if there is nothing more to say.
    if not end.tells or text in (f"exit code {code}", f"ended by {signal}"):
        return words
    return f"{words}: {text}" if text else words


def ended_reason(tx: Tx, run: Row[Any]) -> Reason:
    """How a run ended.

    Args:
        run: of runs, ended; with ``deployment``, its name.
    """
    # One that never was an attempt's: it was ended while it waited, or before its next attempt.
    by_attempt = tx.conn.execute(
        select(attempts).where(attempts.c.run_id == run.id, attempts.c.number == run.attempts)
    ).one_or_none()
    details: dict[str, Any] = {
        "ended_at": at_utc(run.ended_at),
        "attempts": run.attempts,
        "cause": run.cause,
        "message": run.message,
    }
    if by_attempt is not None:
        details |= {
            "agent": by_attempt.agent,
            "exit_code": by_attempt.exit_code,
            "signal": by_attempt.signal,
        }
    if run.state == RunState.COMPLETED.value:
        return _completed(run, by_attempt, details)
    state, cause = RunState(run.state), Cause(run.cause)
    end, attempt = _ENDS[state, cause], by_attempt
    if state is RunState.CANCELLED and (attempt is None or attempt.state != run.state):
        attempt = None
        end = _while_it_waited(tx, run, end)
    names = {
        "run": short(run.id),
        "deployment": run.deployment,
        "agent": by_attempt.agent if by_attempt is not None else "its agent",
    }
    words = _words(end, attempt, run.message)
    if state is RunState.CANCELLED and end.tells:
        words = words.replace("somebody", who_asked(tx, run.id), 1)
    sentence = f"it {_HOW[state]}{_where(attempt)}: {words}"
    return Reason(end.code, sentence, end.step.format(**names), details)


def who_asked(tx: Tx, run_id: UUID) -> str:
    """Who had a run end; ``somebody`` if that is not known."""
    ending = (RunState.CANCELLED.value, AttemptState.CANCELLING.value)
    last = (
        select(events.c.data)
        .where(events.c.run_id == run_id, events.c.kind.in_(ending), events.c.actor == Actor.USER.value)
        .order_by(events.c.id.desc())
        .limit(1)
    )
    return str((tx.conn.scalar(last) or {}).get("by") or "somebody")


def _while_it_waited(tx: Tx, run: Row[Any], end: _End) -> _End:
    if end.code is Code.CANCELLED:
        return _WAITING
    if end.code is Code.SKIPPED:
        last = (
            select(events.c.actor)
            .where(events.c.run_id == run.id, events.c.kind == run.state)
            .order_by(events.c.id.desc())
            .limit(1)
        )
        return _WHEN_FULL if tx.conn.scalar(last) == Actor.QUEUE.value else end
    return end


def _completed(run: Row[Any], attempt: Row[Any] | None, details: dict[str, Any]) -> Reason:
    which = "at its first attempt" if run.attempts == 1 else f"at attempt {run.attempts}"
    took = ""
    if run.started_at is not None and run.ended_at is not None:
        took = f" in {lasting(run.ended_at - run.started_at)}"
        details["seconds"] = (run.ended_at - run.started_at) / 1_000_000
    where = f", on agent {attempt.agent}" if attempt is not None else ""
    return Reason(
        Code.COMPLETED,
        f"it completed{took}, {which}{where}",
        f"Nothing: it is done. `shunter run logs {short(run.id)}` shows what it wrote.",
        details,
    )


def _where(attempt: Row[Any] | None) -> str:
    """`` after 12s at attempt 2 on agent a1``."""
    if attempt is None:
        return ""
    began = attempt.started_at
    after = f" after {lasting(attempt.ended_at - began)}" if began is not None else ""
    number = f" at attempt {attempt.number}" if attempt.number > 1 else ""
    return f"{after}{number} on agent {attempt.agent}"
