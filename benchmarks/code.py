"""What code of a repository and an environment add to a start, once they are there."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.report import Table
from shunter_agents.sources.environment import Environments
from shunter_agents.sources.git import Repositories
from shunter_agents.sources.shelf import Shelf
from shunter_work_pools.contracts.code_sources import Environment, GitSource


def prepared(table: Table, count: int = 300) -> None:
    """A pinned commit that was fetched, and an environment that was built: looked up as at each start."""
    with tempfile.TemporaryDirectory(prefix="shunter-bench-") as folder:
        code, environment = asyncio.run(_measure(Path(folder), count))
    table.row("code of a commit that is there, median", statistics.median(code), "ms", 10)
    table.row("environment that is built, median", statistics.median(environment), "ms", 20)


async def _measure(root: Path, count: int) -> tuple[list[float], list[float]]:
    git = ["git", "-C", str(root / "repository"), "-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    (root / "repository").mkdir()
    (root / "repository" / "requirements.txt").write_text("\n".join(f"package-{n}==1.0" for n in range(100)))
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "x"]):
        await asyncio.to_thread(subprocess.run, [*git, *words], check=True)
    source = GitSource(git=(root / "repository").as_uri())
    repositories = Repositories(root / "mirrors", Shelf(root / "code"), os.environ)
    environments = Environments(Shelf(root / "environments"), root / "downloads", os.environ)
    wanted = Environment()
    commit: str | None = None
    code, environment = [], []
    for number in range(count + 1):
        user = root / "attempts" / f"run.{number}"
        user.mkdir(parents=True)
        begun = time.perf_counter()
        place, commit = await repositories.fetch(source, None, commit, user, lambda words: None)
        fetched = time.perf_counter()
        await environments.build(wanted, place, user, lambda words: None)
        if number:  # the first one makes both
            code.append((fetched - begun) * 1000)
            environment.append((time.perf_counter() - fetched) * 1000)
    return code, environment
