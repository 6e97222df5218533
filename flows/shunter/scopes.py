"""Which run the code that asks belongs to: the innermost task run or flow run around it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from shunter.futures import TaskFuture
    from shunter.runs import FlowRun

    Scope: TypeAlias = FlowRun | TaskFuture[Any]

#: None outside of any flow.
current: ContextVar[Scope | None] = ContextVar("shunter_scope", default=None)
