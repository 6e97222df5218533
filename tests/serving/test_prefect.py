"""A Prefect flow runs unmodified as a deployment whose interpreter has Prefect: real Prefect, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import compare_prefect
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site

#: Nothing in it is of Shunter. The example of docs/from-prefect.md.
FLOW = '''
import asyncio
import time
from datetime import date

from prefect import flow, get_run_logger, task


@task(retries=2, retry_delay_seconds=0.1)
def square(n: int) -> int:
    return n * n


@task
def total(values: list[int]) -> int:
    return sum(values)


@flow(name="Squares", log_prints=True)
def squares(upto: int = 5, day: date = date(2026, 1, 1)) -> int:
    "Squares, added."
    print(f"squares up to {upto} on {day:%d.%m.}")
    get_run_logger().info("mapping")
    return total(square.map(range(upto)))


@flow
async def fails(text: str) -> None:
    await asyncio.sleep(0)
    raise LookupError(text)


@flow
def sleeps() -> None:
    print("asleep", flush=True)
    time.sleep(600)
'''


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment that has Prefect."""
    made = (compare_prefect.ENVIRONMENT / ".installed").exists()
    if not made and os.environ.get("SHUNTER_TEST_INSTALL") != "1":
        pytest.skip("no environment with Prefect: `make compare` makes one, or set SHUNTER_TEST_INSTALL=1")
    compare_prefect.make_environment()
    return compare_prefect.ENVIRONMENT / "bin" / "python"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Iterator[Site]:
    """A server with an agent, and the flows deployed as a person would."""
    folder = tmp_path_factory.mktemp("prefect")
    (folder / "flow.py").write_text(FLOW)
    with site(folder / "home") as found:
        env = {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        for name in ("squares", "fails", "sleeps"):
            words = [str(Path(sys.executable).with_name("shunter")), "deploy", f"flow.py:{name}", "--name", name]
            words += ["--pool", "default", "--python", str(python)]
            words += [word for pair in env.items() for word in ("--env", "=".join(pair))]
            words += ["-p", "text=gone"] if name == "fails" else []
            subprocess.run(words, env=found.env | env, cwd=folder, check=True, timeout=100)
        with found.agent("a1"):
            yield found


def started(one: Site, deployment: str, **parameters: object) -> str:
    return str(one.client.create_run(RunRequest(deployment=deployment, parameters=parameters)).id)


@pytest.mark.timeout(300)
def test_a_prefect_flow_runs_unmodified(one: Site) -> None:
    spec = one.client.get_deployment("squares").spec
    assert spec.description == "Squares, added."
    assert spec.parameter_schema is not None
    assert spec.parameter_schema["properties"]["day"]["format"] == "date"
    run = started(one, "squares", upto=4, day="2026-11-26")
    failing = started(one, "fails")
    found = one.ended(run, 200)
    assert (found.state, found.result) == ("Completed", 14), one.output(run).decode()
    told = one.output(run).decode()
    assert "squares up to 4 on 26.11." in told
    assert told.count("Finished in state Completed()") == 6  # four squares, their total, the flow
    ended = one.ended(failing, 200)
    assert (ended.state, ended.cause, ended.message) == ("Failed", "exception", "LookupError: gone")


@pytest.mark.timeout(300)
def test_a_prefect_flow_is_cancelled(one: Site) -> None:
    run = started(one, "sleeps")
    deadline = time.monotonic() + 200
    while b"asleep" not in one.client.read_log(run).data:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    one.client.cancel_run(run)
    assert one.ended(run, 60).state == "Cancelled"
