"""Shunter: what is imported inside a run.

Everything is loaded when it is first asked for, so that ``from shunter import flow, task`` costs little.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it; importing typing here would cost every run
if TYPE_CHECKING:
    from shunter import artifacts as artifacts
    from shunter import context as context
    from shunter.annotations import allow_failure as allow_failure
    from shunter.annotations import unmapped as unmapped
    from shunter.deployments import deploy as deploy
    from shunter.errors import FlowTimeout as FlowTimeout
    from shunter.errors import TaskCancelled as TaskCancelled
    from shunter.errors import TaskTimeout as TaskTimeout
    from shunter.errors import UpstreamFailed as UpstreamFailed
    from shunter.flows import Flow as Flow
    from shunter.flows import flow as flow
    from shunter.futures import TaskFuture as TaskFuture
    from shunter.futures import as_completed as as_completed
    from shunter.futures import wait as wait
    from shunter.loggers import get_logger as get_logger
    from shunter.progress import track as track
    from shunter.serving import serve as serve
    from shunter.states import State as State
    from shunter.tasks import Task as Task
    from shunter.tasks import task as task

_HOMES = {
    "Flow": "flows",
    "FlowTimeout": "errors",
    "State": "states",
    "Task": "tasks",
    "TaskCancelled": "errors",
    "TaskFuture": "futures",
    "TaskTimeout": "errors",
    "UpstreamFailed": "errors",
    "allow_failure": "annotations",
    "as_completed": "futures",
    "deploy": "deployments",
    "flow": "flows",
    "get_logger": "loggers",
    "serve": "serving",
    "task": "tasks",
    "track": "progress",
    "unmapped": "annotations",
    "wait": "futures",
}
_MODULES = ("artifacts", "context")


def __getattr__(name: str) -> object:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"shunter.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'shunter' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"shunter.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
