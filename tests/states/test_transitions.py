"""The table of transitions is whole: every state can be reached, every end is one, every cause has a place."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter_work_pools.contracts.states import (
    ATTEMPT_ENDS,
    ATTEMPT_LIVE,
    ATTEMPT_TRANSITIONS,
    CAUSES,
    OWN_FAULT_SIGNALS,
    RUN_ENDS,
    RUN_TRANSITIONS,
    Actor,
    AttemptState,
    Cause,
    RunState,
    cause_fits,
    may_move_attempt,
    may_move_run,
)

#: The design's words, written a second time on purpose: a cause that moves is a decision, not an edit.
DESIGNED_CAUSES = {
    "Completed": "",
    "Failed": "exit_code exception signal",
    "Crashed": (
        "signal oom evicted preempted image_pull unschedulable start_failed start_timeout agent_lost "
        "node_lost keeper_lost source deleted rejected"
    ),
    "TimedOut": "timeout",
    "Cancelled": "cancelled skipped superseded",
}


def reachable(table: Mapping[tuple[Any, Any], Any]) -> set[Any]:
    """The states that something made can come into."""
    found: set[Any] = set()
    edge: set[Any] = {None}
    while edge:
        edge = {after for before, after in table if before in edge} - found
        found |= edge
    return found


def test_every_state_is_reached_from_nothing() -> None:
    assert reachable(RUN_TRANSITIONS) == set(RunState)
    assert reachable(ATTEMPT_TRANSITIONS) == set(AttemptState)


def test_the_ends_of_runs_and_attempts_are_the_same_five() -> None:
    assert {end.value for end in RUN_ENDS} == {end.value for end in ATTEMPT_ENDS} == set(DESIGNED_CAUSES)
    assert set(AttemptState) == ATTEMPT_ENDS | ATTEMPT_LIVE
    assert not ATTEMPT_ENDS & ATTEMPT_LIVE


def test_nothing_leaves_the_end_of_an_attempt() -> None:
    assert not [arrow for arrow in ATTEMPT_TRANSITIONS if arrow[0] in ATTEMPT_ENDS]


def test_a_run_leaves_its_end_only_by_a_user_who_retries_it_and_never_a_completed_one() -> None:
    out = {arrow: who for arrow, who in RUN_TRANSITIONS.items() if arrow[0] in RUN_ENDS}
    assert set(out) == {(end, RunState.SCHEDULED) for end in RUN_ENDS - {RunState.COMPLETED}}
    assert set(out.values()) == {frozenset({Actor.USER})}


def test_every_live_state_has_a_way_to_every_end() -> None:
    for live in ATTEMPT_LIVE:
        assert {after for before, after in ATTEMPT_TRANSITIONS if before is live} >= ATTEMPT_ENDS
    assert {after for before, after in RUN_TRANSITIONS if before is RunState.ACTIVE} >= RUN_ENDS


def test_attempts_never_go_back() -> None:
    order = [AttemptState.CLAIMED, AttemptState.STARTING, AttemptState.RUNNING, AttemptState.CANCELLING]
    for before, after in ATTEMPT_TRANSITIONS:
        if before is not None and after in ATTEMPT_LIVE:
            assert order.index(before) < order.index(after), f"{before} -> {after}"


def test_every_transition_has_somebody_who_makes_it_and_nobody_is_idle() -> None:
    makers = [*RUN_TRANSITIONS.values(), *ATTEMPT_TRANSITIONS.values()]
    assert all(makers)
    assert frozenset().union(*makers) == set(Actor)


def test_only_the_queue_grants_and_only_users_and_limits_ask_for_an_end() -> None:
    queue_only = frozenset({Actor.QUEUE})
    assert ATTEMPT_TRANSITIONS[None, AttemptState.CLAIMED] == queue_only
    for before, after in RUN_TRANSITIONS:
        if after is RunState.ACTIVE:
            assert RUN_TRANSITIONS[before, after] == queue_only
    for before, after in ATTEMPT_TRANSITIONS:
        if after is AttemptState.CANCELLING:
            assert ATTEMPT_TRANSITIONS[before, after] == frozenset({Actor.USER, Actor.QUEUE})


def test_causes_are_those_of_the_design() -> None:
    assert {end.value: {cause.value for cause in causes} for end, causes in CAUSES.items()} == {
        end: set(words.split()) for end, words in DESIGNED_CAUSES.items()
    }


def test_causes_are_total_and_only_a_signal_has_two_meanings() -> None:
    assert set(CAUSES) == ATTEMPT_ENDS
    uses = [cause for causes in CAUSES.values() for cause in causes]
    assert set(uses) == set(Cause)
    assert [cause for cause in set(uses) if uses.count(cause) > 1] == [Cause.SIGNAL]


@pytest.mark.parametrize("end", sorted(ATTEMPT_ENDS))
def test_an_end_has_exactly_one_of_its_causes_or_none_where_there_are_none(end: AttemptState) -> None:
    assert {cause for cause in Cause if cause_fits(end, cause)} == CAUSES[end]
    assert cause_fits(end, None) is (end is AttemptState.COMPLETED)


def test_signals_of_a_fault_of_its_own() -> None:
    assert {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"} == OWN_FAULT_SIGNALS


@given(st.data())
def test_a_random_walk_of_a_run_goes_through_the_states_in_order(data: st.DataObject) -> None:
    """Any walk begins Scheduled, is Active before each end but one, and stands still at Completed."""
    walk: list[RunState] = []
    here: RunState | None = None
    for _ in range(data.draw(st.integers(1, 30))):
        ways = sorted(after for before, after in RUN_TRANSITIONS if before is here)
        if not ways:
            break
        after = data.draw(st.sampled_from(ways))
        actor = data.draw(st.sampled_from(sorted(RUN_TRANSITIONS[here, after])))
        assert may_move_run(here, after, actor)
        here = after
        walk.append(after)
    assert walk[0] is RunState.SCHEDULED
    for before, after in pairwise(walk):
        if after in RUN_ENDS:
            assert before is RunState.ACTIVE or after is RunState.CANCELLED
        if before in RUN_ENDS:
            assert (after, before is RunState.COMPLETED) == (RunState.SCHEDULED, False)
    if RunState.COMPLETED in walk:
        assert walk[-1] is RunState.COMPLETED


@given(st.data())
def test_a_random_walk_of_an_attempt_ends_within_five_steps(data: st.DataObject) -> None:
    here: AttemptState | None = None
    steps = 0
    while here not in ATTEMPT_ENDS:
        after = data.draw(
            st.sampled_from(sorted(after for before, after in ATTEMPT_TRANSITIONS if before is here))
        )
        assert any(may_move_attempt(here, after, actor) for actor in Actor)
        here, steps = after, steps + 1
    assert 2 <= steps <= 5


@given(
    st.sampled_from([None, *AttemptState]), st.sampled_from(list(AttemptState)), st.sampled_from(list(Actor))
)
def test_what_the_table_does_not_hold_nobody_may(
    before: AttemptState | None, after: AttemptState, actor: Actor
) -> None:
    assert may_move_attempt(before, after, actor) is (
        actor in ATTEMPT_TRANSITIONS.get((before, after), frozenset())
    )
