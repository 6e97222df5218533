"""Where the code that asks is: ``from shunter import context; context.run_id``.

Outside of a run ``run_id`` and its like are None (``attempt`` 1, ``parameters`` and ``tags`` empty); outside of a flow
``flow`` and ``task`` are.
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    run_id: str | None  #: of the run on the server
    attempt: int  #: which try of the run
    deployment: str | None  #: its deployment's name
    scheduled_at: datetime | None  #: when it was due
    parameters: dict[str, Any]  #: of the innermost flow; outside of a flow those of the run
    tags: list[str]  #: of the run
    flow: str | None  #: name of the innermost flow
    task: str | None  #: name of the task
    task_attempt: int  #: which try of the task; 0 outside of tasks
    key: str  #: of the innermost task or flow run; empty where nothing needs one

_NAMES = (
    "attempt", "deployment", "flow", "key", "parameters", "run_id", "scheduled_at", "tags", "task", "task_attempt",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"shunter.context has no {name!r}; it has {', '.join(_NAMES)}")
    return globals()[f"_{name}"]()


def __dir__() -> list[str]:
    return list(_NAMES)


def _run_id() -> str | None:
    return os.environ.get("SHUNTER_RUN_ID") or None


def _attempt() -> int:
    return int(os.environ.get("SHUNTER_ATTEMPT") or 1)


def _deployment() -> str | None:
    return os.environ.get("SHUNTER_DEPLOYMENT") or None


def _scheduled_at() -> datetime | None:
    text = os.environ.get("SHUNTER_SCHEDULED_AT")
    return datetime.fromisoformat(text) if text else None


def _tags() -> list[str]:
    tags: list[str] = json.loads(os.environ.get("SHUNTER_TAGS") or "[]")
    return tags


def _parameters() -> dict[str, Any]:
    scope = _scope()
    if scope is not None:
        return dict(scope.flow_run.parameters)
    from shunter.runner import read_parameters

    return read_parameters()


def _flow() -> str | None:
    scope = _scope()
    return scope.flow_run.flow.name if scope is not None else None


def _task() -> str | None:
    scope = _scope()
    return scope.name if scope is not None and not scope.is_flow else None


def _task_attempt() -> int:
    scope = _scope()
    return scope.attempt if scope is not None and not scope.is_flow else 0


def _key() -> str:
    scope = _scope()
    return scope.key if scope is not None else ""


def _scope() -> Any:
    from shunter.scopes import current

    return current.get()
