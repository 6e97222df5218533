"""Log lines of a daemon (agent, server) on stderr: readable on a terminal, one JSON object a line otherwise.

The setting ``log.format`` decides where that guess is wrong, ``log.level`` how much is said.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from shunter_work_pools.contracts.plain_text import plain

# structlog takes rich (for tracebacks) and greenlet along if they happen to be installed: 7 MB that a
# daemon has no use for. Told that they are not there, it goes on without.
_hidden = [
    name for name in ("rich", "greenlet") if "structlog" not in sys.modules and name not in sys.modules
]
for _name in _hidden:
    sys.modules[_name] = None  # type: ignore[assignment]
try:
    import structlog
    import structlog.dev
finally:
    for _name in _hidden:
        del sys.modules[_name]

_LEVELS = {name.lower(): getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR")}


class _Stderr:
    """stderr that may go away (a closed pipe, a full disk) without taking the daemon with it."""

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            return


def configure(values: Mapping[str, Any]) -> None:
    """Set structlog up for this process.

    Args:
        values: the settings, see ``contracts.configuration``.
    """
    chosen = values["log.format"] or ("console" if sys.stderr.isatty() else "json")
    shared: list[Any] = [structlog.processors.add_log_level]
    if chosen == "json":
        shared += [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
            _without_delete,
        ]
    else:
        shared += [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.processors.format_exc_info,
            _plainly,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[values["log.level"]]),
        logger_factory=structlog.WriteLoggerFactory(file=_Stderr()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def _plainly(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    """What runs, agents and servers said is shown, and steers no terminal; only a traceback has lines."""
    return {
        plain(name): plain(value, lines=name == "exception") if isinstance(value, str) else value
        for name, value in event.items()
    }


def _without_delete(logger: Any, method: str, line: str) -> str:
    """JSON in ASCII has escapes for all that steers but this one."""
    return line.replace("\x7f", "\\u007f")


def get_logger() -> Any:
    """The process's logger; give ``run`` and ``attempt`` with what concerns one."""
    return structlog.get_logger()
