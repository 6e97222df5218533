"""The steps before a launch: what they refuse by themselves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shunter_agents.sources.code import Code, _inside
from shunter_infrastructure.launcher import NOTHING, LaunchFailed
from shunter_work_pools.contracts.deployments import Work
from tests.sources.git_server import Repository

DAY = 86_400.0


def attempt(folder: Path, **work: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        assignment=SimpleNamespace(work=Work.model_validate({"command": ["true"], **work})),
        journal=SimpleNamespace(folder=folder),
        commit=None,
    )


async def test_another_user_must_be_able_to_reach_it(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    repository = Repository(tmp_path / "code")
    repository.commit({"a.txt": "1"})
    source = {"git": repository.folder.as_uri()}
    code = Code(closed / "cache", {"PATH": "/usr/bin:/bin"}, DAY, None)
    with pytest.raises(LaunchFailed, match="the user nobody cannot reach what is kept") as caught:
        await code.fetch(attempt(tmp_path / "run.1", source=source, run_as="nobody"), NOTHING)
    assert "agent.cache" in caught.value.told
    prepared = await code.fetch(attempt(tmp_path / "run.1", source=source), NOTHING)
    assert prepared.source is not None
    assert (prepared.source / "a.txt").read_text() == "1"


@pytest.mark.parametrize("folder", ["none", "out", "out/deeper", "in/../../x"])
def test_the_folder_of_a_source_does_not_leave_it(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    (root / "out").symlink_to("/etc")
    with pytest.raises(LaunchFailed):
        _inside(root, folder)
    assert _inside(root, "in") == root / "in"
    assert _inside(root, "") == root
