"""Durations and moments as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shunter_cli import durations
from shunter_work_pools.contracts.errors import InvalidInput

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60),
        ("60s", 60),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (".5", 0.5),
        (" 1m ", 60),
        ("0", 0),
        ("1m500ms", 60.5),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert durations.seconds(text, "--x") == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "5 m", "m", "1m1m", "1e3", "nan", "inf", "٣s", "5m x", "--5s", "1h-5m"]
)
def test_what_is_no_duration_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"--interval.*is not a duration"):
        durations.seconds(text, "--interval")


def test_negative_zero_and_endless_are_told_apart() -> None:
    with pytest.raises(InvalidInput, match="'-5s' is negative"):
        durations.seconds("-5s", "--interval")
    with pytest.raises(InvalidInput, match="'0s' is zero"):
        durations.seconds("0s", "--interval", zero=False)
    with pytest.raises(InvalidInput, match="more than ten years"):
        durations.seconds("4000d", "--interval")


@given(st.integers(1, 10 * 365 * 86_400))
def test_what_is_written_exactly_is_read_back(seconds: int) -> None:
    assert durations.seconds(durations.exactly(seconds), "--x") == seconds


@given(st.floats(0, 86_400 * 9_000))
def test_a_duration_in_words_is_short(seconds: float) -> None:
    assert len(durations.in_words(seconds)) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "now"),
        (12, "12s ago"),
        (1.2, "1s ago"),
        (200, "3m ago"),
        (-200, "in 3m"),
        (90_000, "25h ago"),
    ],
)
def test_a_moment_is_told_relative_to_now(seconds: float, text: str) -> None:
    assert durations.ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_moments_are_read() -> None:
    assert durations.moment("2027-03-28T06:00:00+02:00", "--at") == datetime(2027, 3, 28, 4, tzinfo=UTC)
    assert durations.moment("2027-03-28T06:00:00Z", "--at") == datetime(2027, 3, 28, 6, tzinfo=UTC)
    assert durations.moment("+10m", "--at", NOW) == NOW + timedelta(minutes=10)
    assert durations.moment("2027-03-28T06:00", "--at").tzinfo is UTC
    for text in ("tomorrow", "", "2027-13-01", "+", "0001-01-01T00:00+23:00"):
        with pytest.raises(InvalidInput, match="--at"):
            durations.moment(text, "--at")
