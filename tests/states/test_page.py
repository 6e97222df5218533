"""docs/states.md says what the code does: every arrow, actor and cause, in both directions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shunter_work_pools.contracts.states import (
    ATTEMPT_ENDS,
    ATTEMPT_TRANSITIONS,
    CAUSES,
    RUN_TRANSITIONS,
    Actor,
    AttemptState,
    Cause,
    RunState,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "states.md"
_ARROW = re.compile(r"^\s*(\S+) --> (\S+)\s*:\s*(.+)$")
_ROW = re.compile(r"^\|\s*`(\w+)`\s*\|\s*(?:`(\w+)`|none)\s*\|\s*(.+?)\s*\|\s*(.+?)\s*\|$", re.MULTILINE)
Arrows = dict[tuple[str | None, str], frozenset[str]]


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text("utf-8")


def section(page: str, title: str) -> str:
    """The text below a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/states.md has no section {title!r}"
    return found[1]


def drawn(page: str, title: str) -> tuple[Arrows, set[str]]:
    """The arrows of a section's diagram with their actors, and the states drawn as ends."""
    diagram = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", section(page, title), re.DOTALL)
    assert diagram, f"section {title!r} has no stateDiagram-v2"
    arrows: Arrows = {}
    ends = set()
    for line in diagram[1].splitlines():
        if not line.strip() or line.strip().startswith("%%"):
            continue
        if final := re.fullmatch(r"\s*(\w+) --> \[\*\]", line):
            ends.add(final[1])
            continue
        match = _ARROW.match(line)
        assert match, f"not understood: {line!r}"
        arrow = (None if match[1] == "[*]" else match[1], match[2])
        assert arrow not in arrows, f"drawn twice: {line!r}"
        arrows[arrow] = frozenset(re.split(r",\s*", match[3].strip()))
    return arrows, ends


def coded(table: dict[Any, frozenset[Actor]]) -> Arrows:
    """A table of the code in the words of the page."""
    return {
        (before.value if before else None, after.value): frozenset(actor.value for actor in who)
        for (before, after), who in table.items()
    }


def test_every_arrow_of_runs_and_who_makes_it(page: str) -> None:
    arrows, ends = drawn(page, "Runs")
    assert arrows == coded(RUN_TRANSITIONS)
    assert ends == {RunState.COMPLETED.value}


def test_every_arrow_of_attempts_and_who_makes_it(page: str) -> None:
    arrows, ends = drawn(page, "Attempts")
    assert arrows == coded(ATTEMPT_TRANSITIONS)
    assert ends == {end.value for end in ATTEMPT_ENDS}


def test_every_state_is_explained(page: str) -> None:
    for title, states in (("Runs", RunState), ("Attempts", AttemptState)):
        told = set(re.findall(r"^\| `(\w+)` \|", section(page, title), re.MULTILINE))
        assert told == {state.value for state in states}


def test_every_cause_has_a_row_and_every_row_is_a_cause(page: str) -> None:
    rows = [(match[1], match[2]) for match in _ROW.finditer(section(page, "Causes"))]
    assert len(rows) == len(set(rows))
    expected = {(end.value, cause.value) for end, causes in CAUSES.items() for cause in causes}
    assert set(rows) == expected | {(AttemptState.COMPLETED.value, None)}


def test_makers_of_causes_may_make_that_end(page: str) -> None:
    for match in _ROW.finditer(section(page, "Causes")):
        end, makers = match[1], set(re.split(r",\s*", match[3]))
        allowed = {
            actor.value
            for table in (RUN_TRANSITIONS, ATTEMPT_TRANSITIONS)
            for (_, after), who in table.items()
            if after.value == end
            for actor in who
        }
        assert makers <= allowed, f"{end} {match[2]}: {makers}"


def test_every_actor_is_introduced(page: str) -> None:
    told = set(re.findall(r"^\* \*\*(\w+)\*\*", section(page, "Who"), re.MULTILINE))
    assert told == {actor.value for actor in Actor}


def test_every_code_word_on_the_page_is_one(page: str) -> None:
    """A state or cause that was renamed in the code must not live on in a sentence."""
    known = {state.value for state in (*RunState, *AttemptState)}
    words = set(re.findall(r"`([A-Z][A-Za-z]+)`", page))
    assert words <= known
    causes = set(re.findall(r"`([a-z_]+)`", section(page, "Causes")))
    assert causes <= {cause.value for cause in Cause} | {"on_lost", "start_timeout", "crash", "retry"}
