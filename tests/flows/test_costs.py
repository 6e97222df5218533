"""What is not to be loaded, and what a large map takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = str(Path(__file__).parents[2])
#: Bytes that one task run of a map may take, with its future, its argument and its small result.
PER_TASK = 2048


def said(code: str) -> Any:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


HEAVY = {
    "asyncio", "cloudpickle", "concurrent.futures", "dask", "dataclasses", "distributed", "docker", "httpx", "inspect",
    "json", "kubernetes", "logging", "multiprocessing", "pydantic", "shunter.engine", "socket", "ssl", "subprocess",
    "threading",
}  # fmt: skip


def test_the_decorators_load_little() -> None:
    code = """
import sys
before = set(sys.modules)
from shunter import flow, task
@task
def one(n: int) -> int: return n
@flow
def whole() -> int: return one(1)
assert one(2) == 2
import json
print(json.dumps(sorted(set(sys.modules) - before - {"json", "json.decoder", "json.encoder", "json.scanner"})))
"""
    loaded = set(said(code))
    assert not loaded & (HEAVY - {"json"})
    assert len(loaded) <= 40, sorted(loaded)


@pytest.mark.parametrize("mode", ["called", "threads"])
def test_a_flow_loads_neither_pydantic_nor_asyncio_nor_httpx(mode: str) -> None:
    code = f"""
import sys, json
from shunter import flow, task
@task
def one(n: int) -> int: return n
@flow
def whole(n: int = 1) -> int: return one(n) if {mode == "called"} else one.submit(n).result()
assert whole(3) == 3
print(json.dumps(sorted(sys.modules)))
"""
    heavy = {"pydantic", "asyncio", "httpx", "multiprocessing", "distributed", "cloudpickle", "subprocess"}
    assert not set(said(code)) & heavy


def test_a_map_over_a_hundred_thousand_inputs() -> None:
    code = """
import json, os
from shunter import flow, task
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
@task
def one(n): return n
@flow
def whole(count):
    one.map(range(1000)).wait()
    before = resident()
    futures = one.map(range(count))
    total = sum(futures.result())
    return total, (resident() - before) / count
print(json.dumps(whole(100_000)))
"""
    total, each = said(code)
    assert total == sum(range(100_000))
    assert each < PER_TASK
