"""A sample of `python -m benchmarks.agreement`: every difference to croniter is explained."""

from __future__ import annotations

import random
from datetime import UTC, datetime

from benchmarks import agreement


def test_cron_slots_agree_with_an_independent_implementation() -> None:
    outcome = agreement.compare(4000, seed=20_261_122)
    assert outcome.unexplained == []
    assert outcome.calendar[agreement.EQUAL] > 3500
    assert outcome.zoned[agreement.EQUAL] > 3500
    assert sum(outcome.calendar.values()) == sum(outcome.zoned.values()) == 4000


def test_a_difference_without_a_reason_is_found() -> None:
    case = agreement.draw(random.Random(1))
    outcome = agreement.Outcome()
    wrong = agreement.Both(case)
    wrong.ours = lambda zone: datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC)  # type: ignore[method-assign]
    agreement._compare_calendar(wrong, outcome)
    agreement._compare_zoned(wrong, outcome)
    assert len(outcome.unexplained) == 2
