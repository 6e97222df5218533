"""A Prefect flow runs unmodified as a deployment whose interpreter has Prefect: real Prefect, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import compare_prefect
from shunter_work_pools.contracts.runs import RunRequest
from tests.agents.real_server import Site, site
from tests.serving import page

#: The flow that docs/from-prefect.md begins with, and two that do not complete.
FLOWS = (
    page.blocks()[0]
    + """
import asyncio
import time


@flow
async def fails(text: str) -> None:
    await asyncio.sleep(0)
    raise LookupError(text)


@flow
def sleeps() -> None:
    print("asleep", flush=True)
    time.sleep(600)
"""
)


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
    (folder / "flow.py").write_text(FLOWS)
    with site(folder / "home") as found:
        for name in ("squares", "fails", "sleeps"):
            env = {
                "PREFECT_HOME": str(folder / name),
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
            }
            words = [
                str(Path(sys.executable).with_name("shunter")),
                "deploy",
                f"flow.py:{name}",
                "--name",
                name,
            ]
            words += ["--pool", "default", "--python", str(python)]
            words += [word for pair in env.items() for word in ("--env", "=".join(pair))]
            words += [] if name == "squares" else ["--no-check"]  # Prefect takes seconds to import
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
    failing = started(one, "fails", text="gone")
    cancelled = started(one, "sleeps")
    found = one.ended(run, 200)
    told = one.output(run).decode()
    assert (found.state, found.result) == ("Completed", 14), told
    assert "squares up to 4 on 26.11." in told
    assert told.count("Finished in state Completed()") == 6  # four squares, their total, the flow
    ended = one.ended(failing, 200)
    assert (ended.state, ended.cause, ended.message) == ("Failed", "exception", "LookupError: gone")
    start, seen = 0, b""
    while b"asleep" not in seen:
        part = one.client.read_log(cancelled, start=start, wait=5.0)
        assert not part.complete, seen
        start, seen = part.end, seen + part.data
    one.client.cancel_run(cancelled)
    assert one.ended(cancelled, 60).state == "Cancelled"
