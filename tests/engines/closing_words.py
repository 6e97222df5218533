"""What is said at the end of a test run: the time of each suite against its budget, what was skipped, and what this
kernel or system cannot run.

A suite is a folder directly below ``tests/``. A suite over its budget is shown, not failed: how fast
the machine is today is no property of the product.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import NoReturn

import pytest
from _pytest.terminal import TerminalReporter

#: Seconds that a suite may take on two cores, beside the other line. Raise one only with a reason.
BUDGETS = {
    "agents": 600,
    "api": 360,
    "chaos": 480,
    "charts": 150,  # five hundred times a Helm: every file of values and every bad value, with both
    "cli": 720,
    "cluster": 240,
    "contracts": 20,
    "demo": 150,
    "engines": 20,
    "flows": 180,  # a real Dask cluster, one killed worker, one killed scheduler; processes that are killed
    "helm": 480,  # releases of both charts on a real cluster, as people install, upgrade and remove them
    "images": 240,  # both images are built, a real engine has them
    "joining": 150,  # a real cluster, a provider, agents that are killed at each step
    "launchers": 1800,  # four real engines; a cluster that is away for two minutes, nodes that are lost
    "networks": 180,  # a minute without a network, on machines of the tests' own
    "pains": 90,
    "queue": 360,  # a thousand tests, most of them on both stores
    "schedules": 45,
    "secrets": 120,  # a server, an agent and an engine for each launcher
    "services": 150,
    "serving": 240,  # scripts with agents of their own, that are killed and started again; Prefect in its own environment
    "settings": 120,
    "sources": 120,  # real git, real uv; a server, an agent and runs
    "states": 20,
    "storage": 120,
}
DEFAULT_BUDGET = 60

_require_all = os.environ.get("SHUNTER_TEST_REQUIRE") == "all"
_seconds: dict[str, float] = defaultdict(float)
_tests: dict[str, int] = defaultdict(int)
_skipped: list[tuple[str, str]] = []
_not_applicable: list[tuple[str, str]] = []
_NOT_APPLICABLE = "not applicable: "


def not_applicable(reason: str) -> NoReturn:
    """Leave a test out because of a fact about this kernel or system that no installation changes.

    It is listed at the end, and no failure even where every skip is one. For what could be installed, started or
    allowed, skip instead.

    Args:
        reason: the fact, and what shows the promise here instead, if anything does.
    """
    pytest.skip(_NOT_APPLICABLE + reason)


def _suite(nodeid: str) -> str:
    parts = nodeid.split("::")[0].split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "tests" else "(top)"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = _reason(report)
    if reason.startswith(_NOT_APPLICABLE):
        _not_applicable.append((report.nodeid, reason.removeprefix(_NOT_APPLICABLE)))
        return
    _skipped.append((report.nodeid, reason))
    if _require_all:
        report.outcome = "failed"
        report.longrepr = f"SHUNTER_TEST_REQUIRE=all, but this was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):  # type: ignore[no-untyped-def]
    report = yield
    _note_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):  # type: ignore[no-untyped-def]
    report = yield
    _note_skip(report)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    suite = _suite(report.nodeid)
    _seconds[suite] += report.duration
    _tests[suite] += report.when == "call"


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    say = terminalreporter
    if _seconds:
        say.section("time of each suite against its budget")
        for suite in sorted(_seconds):
            took, budget = _seconds[suite], BUDGETS.get(suite, DEFAULT_BUDGET)
            line = f"{suite:<14}{_tests[suite]:>6} tests {took:>8.1f} s of {budget:>4} s"
            if took > budget:
                say.write_line(f"{line}   OVER BUDGET", yellow=True, bold=True)
            else:
                say.write_line(line)
    if _not_applicable:
        say.section("not applicable: facts about this kernel or system")
        _list(say, _not_applicable)
    if _skipped:
        say.section("SKIPPED: these were not tested", yellow=True, bold=True)
        _list(say, _skipped, yellow=True)


def _list(say: TerminalReporter, left_out: list[tuple[str, str]], **markup: bool) -> None:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for nodeid, reason in left_out:
        by_reason[reason].append(nodeid)
    for reason, nodeids in by_reason.items():
        say.write_line(f"{len(nodeids)} x {reason}", **markup)
        for nodeid in nodeids:
            say.write_line(f"    {nodeid}")
