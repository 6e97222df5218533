"""What an agent keeps of thousands of attempts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from shunter_agents.attempt import Attempt
from shunter_agents.holdings import Holdings
from shunter_agents.journal import Journal, Record
from shunter_agents.state_folder import StateFolder
from shunter_infrastructure.fake import FakeLauncher
from shunter_infrastructure.stamp import Stamp
from shunter_work_pools.contracts.agents import Assignment
from shunter_work_pools.contracts.deployments import Work


def _attempt(folder: Path, number: int, work: Work, template: dict[str, Any]) -> Attempt:
    assignment = Assignment(
        run=UUID(int=number),
        attempt=1,
        epoch=1,
        session=uuid4(),
        deployment="d",
        revision=1,
        pool="cluster",
        queue="default",
        scheduled_at=datetime.now(UTC),
        work=work,
        template=template,
    )
    return Attempt(Record(assignment, "fake", Stamp.now()), Journal(folder), FakeLauncher())


def test_what_runs_have_alike_is_kept_once(tmp_path: Path) -> None:
    """And what one of them has otherwise stays its own."""
    holdings = Holdings(StateFolder(tmp_path, "a"), 3, {})
    made = [
        _attempt(tmp_path, 1, Work(command=["true"]), {"image": "a"}),
        _attempt(tmp_path, 2, Work(command=["true"]), {"image": "a"}),
        _attempt(tmp_path, 3, Work(command=["true"], memory_limit=1 << 30), {"image": "b"}),
    ]
    for attempt in made:
        holdings.add(attempt)
    one, same, other = (attempt.assignment for attempt in made)
    assert same.work is one.work
    assert same.template is one.template
    assert other.work.memory_limit == 1 << 30
    assert other.template == {"image": "b"}
