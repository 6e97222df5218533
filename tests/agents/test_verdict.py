"""What an end means: every cause that an agent can find, and only such that fit."""

from __future__ import annotations

import pytest

from shunter_agents.verdict import MESSAGE_LIMIT, Stop, never_started, verdict
from shunter_infrastructure.launcher import Exit
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.states import (
    ATTEMPT_ENDS,
    CAUSES,
    OWN_FAULT_SIGNALS,
    AttemptState,
    Cause,
    cause_fits,
)

S, C = AttemptState, Cause


def end(**facts: object) -> Exit:
    return Exit(Stamp.now(), **facts)  # type: ignore[arg-type]


CASES = [
    (end(exit_code=0), None, S.COMPLETED, None),
    (end(exit_code=0), Stop.CANCEL, S.COMPLETED, None),
    (end(exit_code=0), Stop.TIMEOUT, S.TIMED_OUT, C.TIMEOUT),
    (end(exit_code=0), Stop.START_TIMEOUT, S.CRASHED, C.START_TIMEOUT),
    (end(exit_code=3), None, S.FAILED, C.EXIT_CODE),
    (end(exit_code=137), None, S.FAILED, C.EXIT_CODE),
    (end(exit_code=1, exception=True, message="ValueError: no"), None, S.FAILED, C.EXCEPTION),
    (end(signal="SIGKILL"), None, S.CRASHED, C.SIGNAL),
    (end(signal="SIGTERM"), None, S.CRASHED, C.SIGNAL),
    (end(signal="SIGKILL", oom=True), None, S.CRASHED, C.OOM),
    (end(signal="SIGTERM"), Stop.CANCEL, S.CANCELLED, C.CANCELLED),
    (end(signal="SIGKILL"), Stop.CANCEL, S.CANCELLED, C.CANCELLED),
    (end(exit_code=143), Stop.CANCEL, S.CANCELLED, C.CANCELLED),
    (end(exit_code=1, exception=True), Stop.CANCEL, S.CANCELLED, C.CANCELLED),
    (end(signal="SIGTERM"), Stop.TIMEOUT, S.TIMED_OUT, C.TIMEOUT),
    (end(signal="SIGKILL", oom=True), Stop.TIMEOUT, S.TIMED_OUT, C.TIMEOUT),
    (end(error=C.KEEPER_LOST), Stop.CANCEL, S.CRASHED, C.KEEPER_LOST),
    (end(error=C.DELETED), Stop.CANCEL, S.CANCELLED, C.CANCELLED),
    (end(error=C.EXIT_CODE), None, S.CRASHED, C.KEEPER_LOST),
    (end(), None, S.CRASHED, C.KEEPER_LOST),
    *[(end(signal=name), None, S.FAILED, C.SIGNAL) for name in sorted(OWN_FAULT_SIGNALS)],
    *[(end(error=cause), None, S.CRASHED, cause) for cause in sorted(CAUSES[S.CRASHED])],
]


@pytest.mark.parametrize(("happened", "stopped", "state", "cause"), CASES)
def test_an_end_gets_its_state_and_cause(
    happened: Exit, stopped: Stop | None, state: AttemptState, cause: Cause | None
) -> None:
    assert verdict(happened, stopped)[:2] == (state, cause)


@pytest.mark.parametrize("stopped", [None, *Stop])
def test_whatever_happened_the_cause_fits_the_state(stopped: Stop | None) -> None:
    for code in (None, 0, 1):
        for signal in (None, "SIGKILL", "SIGSEGV"):
            for error in (None, *Cause):
                for oom in (False, True):
                    facts = end(exit_code=code, signal=signal, error=error, oom=oom)
                    state, cause, _ = verdict(facts, stopped)
                    assert state in ATTEMPT_ENDS
                    assert cause_fits(state, cause)


def test_every_cause_an_agent_can_find_is_in_the_table() -> None:
    found = {cause for _, _, _, cause in CASES}
    by_the_queue = {C.SKIPPED, C.SUPERSEDED}
    assert found - {None} == set(Cause) - by_the_queue


@pytest.mark.parametrize("why", list(Stop))
def test_what_never_started_ends_by_what_stopped_it(why: Stop) -> None:
    state, cause, _ = never_started(why)
    assert cause_fits(state, cause)


def test_a_message_can_travel_whatever_it_holds() -> None:
    _, _, message = verdict(end(exit_code=1, exception=True, message="\ud800" + "x" * 20_000), None)
    assert message is not None
    assert len(message) <= MESSAGE_LIMIT + 10
    message.encode()


def test_what_a_launch_waited_for_is_told_when_its_time_ran_out() -> None:
    assert never_started(Stop.START_TIMEOUT, "no room", C.UNSCHEDULABLE) == (
        S.CRASHED,
        C.UNSCHEDULABLE,
        "no room",
    )
    assert never_started(Stop.START_TIMEOUT, "no room") == (S.CRASHED, C.START_TIMEOUT, "no room")
    assert never_started(Stop.START_TIMEOUT, "", C.TIMEOUT) == (S.CRASHED, C.START_TIMEOUT, None)
    assert never_started(Stop.CANCEL, "no room", C.UNSCHEDULABLE)[:2] == (S.CANCELLED, C.CANCELLED)
