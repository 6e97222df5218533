"""The hooks of a flow whose process died (``on_crashed``), called in another one.

That is started as the first one was, with ``SHUNTER_CRASHED`` set (JSON: ``cause``, ``message``). Where the outermost flow
would begin, its hooks are called instead, and the process ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from shunter.errors import RunCrashed
from shunter.states import CRASHED, State

if TYPE_CHECKING:
    from shunter.runs import FlowRun


def is_told() -> bool:
    """Whether this process is there for the hooks of one that crashed."""
    return "SHUNTER_CRASHED" in os.environ


def call_hooks(one: FlowRun) -> NoReturn:
    """Call those of a flow, and end."""
    from shunter import loggers

    loggers.set_up()
    why = json.loads(os.environ["SHUNTER_CRASHED"])
    error = RunCrashed(why.get("message") or why.get("cause") or "its process died")
    one.state, one.error = CRASHED, error
    one.flow.hooks.call(one.flow, one, State(CRASHED, error=error))
    sys.exit(0)
