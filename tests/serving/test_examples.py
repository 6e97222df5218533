"""The examples, and the Python of README.md and docs/flows.md, as they stand: with and without a server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shunter_work_pools.contracts.runs import Run
from tests.agents.real_server import Site, site
from tests.serving.scripts import ended, script, started, written

ROOT = Path(__file__).parents[2]

#: What the first lines of flows and tasks are, to the letter.
FIRST_LINES = """\
from shunter import flow, task, serve, deploy

@task(retries=2, retry_delay=1)
def fetch(n: int) -> int: ...

@task
def total(values: list[int]) -> int: ...

@flow(name="sums", executor="threads")        # or "processes", an Executor, or dask.distributed.Client(...)
def sums(upto: int = 10) -> int:
    return total.submit(fetch.map(range(upto))).result()

if __name__ == "__main__":
    sums(5)                                    # no server needed
    sums.serve(name="every-minute", tags=["demo"], parameters={"upto": 20}, interval=60)
    # serve(a.to_deployment(...), b.to_deployment(...)) for several; sums.deploy(name=..., pool=...) for a pool
"""


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("examples") / "home") as found:
        yield found


def executed(one: Site, *words: str, expected: int = 0, **env: str) -> str:
    """What a command prints; the environment's programs are found first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        words, env=one.env | env | {"PATH": path}, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


@contextmanager
def served(one: Site, path: Path) -> Iterator[Run]:
    """A run of the deployment ``every-minute`` of a script; both are there until this ends."""
    with script(one, path) as process:
        run = one.ended(started(one, "every-minute"))
        assert ended(process) == 0
    yield run
    one.client.delete_deployment("every-minute")


def test_the_first_lines_work_to_the_letter(one: Site, tmp_path: Path) -> None:
    with served(one, written(tmp_path, FIRST_LINES)) as run:
        assert (run.state, run.result, run.tags) == ("Completed", None, ["demo"])
        tasks = [each.name for each in one.client.each_task(str(run.id))]
    assert sorted(tasks) == ["fetch"] * 20 + ["sums", "total"]


def test_the_blocks_of_the_page_of_flows(one: Site, tmp_path: Path) -> None:
    first, serving = blocks("docs/flows.md")
    executed(one, sys.executable, str(written(tmp_path, first, "first.py")), SHUNTER_API_URL="")
    body = first[: first.index("if __name__")]
    with served(one, written(tmp_path, body + serving)) as run:
        assert run.state == "Completed"


def test_the_readme_shows_an_example_that_serves(one: Site, tmp_path: Path) -> None:
    (shown,) = blocks("README.md")
    assert shown == (ROOT / "examples/sums.py").read_text()
    path = shutil.copy(ROOT / "examples/sums.py", tmp_path)
    with served(one, Path(path)) as run:
        assert (run.state, run.result) == ("Completed", sum(n * n for n in range(20)))
    assert (tmp_path / "sums.log").read_text().startswith("30\n")


def test_takings_go_on_from_the_shop_that_was_missing(one: Site, tmp_path: Path) -> None:
    """Line by line, as its docstring says."""
    text = (
        (ROOT / "examples/shops.py")
        .read_text()
        .split('"""')[1]
        .replace("/tmp/shops", str(tmp_path / "shops"))
    )
    lines = [
        line.split("  #")[0].strip()
        for line in text.replace("\\\\", "\\").splitlines()
        if line.startswith("    ")
    ]
    assert len(lines) == 6
    alone, deploy, start, write, retry, look = lines
    told = executed(one, "sh", "-c", alone, SHUNTER_API_URL="").splitlines()
    assert sorted(told[:-1]) == ["east: 2 sales", "north: 1 sales", "south: 3 sales"]
    assert re.match("Failed task compare was skipped: .*west.csv", told[-1])
    executed(one, "sh", "-c", deploy)
    with one.agent("a1"):
        executed(one, "sh", "-c", start, expected=1)
        (run,) = one.client.each_run(deployment="takings")
        assert "west.csv" in (one.client.get_run(str(run.id)).message or "")
        executed(one, "sh", "-c", write)
        executed(one, "sh", "-c", retry.replace("RUN", str(run.id)))
        found = one.ended(run.id)
        assert (found.state, found.result, found.attempt_count) == ("Completed", "west", 2)
        again = sorted(each.name for each in one.client.each_task(str(run.id)) if each.run_attempt == 2)
        output = one.output(run.id).decode()
        assert "west: 1 sales" in output
        assert "north" not in output  # it was read before
        assert again == ["add", "compare", "read", "takings"]
        assert [line.split() for line in executed(one, "sh", "-c", look.replace("RUN", str(run.id))).splitlines()] == [
            ["shop", "cents"], ["west", "250"], ["south", "93"], ["east", "41"], ["north", "10"],
        ]  # fmt: skip


def test_the_pipeline_works_without_a_server(one: Site, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the demo group is not installed: make install")
    pytest.importorskip("statsmodels", reason="the demo group is not installed: make install")
    (line,) = re.findall(r"^ +python (-c .*)$", (ROOT / "examples/co2/pipeline.py").read_text(), re.MULTILINE)
    told = executed(one, "sh", "-c", f"python {line.replace('/tmp/co2', str(tmp_path))}", SHUNTER_API_URL="")
    assert "backtest_error_ppm" in told
    assert (tmp_path / "report.html").exists()
