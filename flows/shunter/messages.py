"""What a task in a process of somebody else tells its flow: artifacts, progress and, where it is on another machine, log records."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any

from shunter.scopes import current

if TYPE_CHECKING:
    from shunter.runs import Root

_TOKEN = os.urandom(16)
#: Of a record, what a line of the log is made of.
_OF_RECORDS = ("name", "levelno", "levelname", "msg", "created", "msecs")


def this_process() -> tuple[bytes, int]:
    """What no other process has, on any machine."""
    return _TOKEN, os.getpid()


class Messages:
    """The end at the task.

    Args:
        send: brings one message, which is JSON, to the flow.
        records: whether log records are sent, too.
    """

    def __init__(self, send: Callable[[str], object], records: bool = False) -> None:
        self._send = send
        self.records = records

    def tell(self, what: dict[str, Any]) -> None:
        """Send it."""
        self._send(json.dumps(what))


def receive(root: Root, message: str) -> None:
    """The end at the flow: an artifact or progress goes into the journal, a record to its logger."""
    what = json.loads(message)
    if "log" in what:
        record = logging.makeLogRecord(what["log"])
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    elif root.journal is not None:
        root.journal.tell(what)


def send_records() -> None:
    """Have loggers send the records of each task to its flow, from INFO on where nobody has set a level."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Records) for handler in root.handlers):
        if not root.handlers:
            root.setLevel(logging.INFO)
        root.addHandler(_Records(None))  # type: ignore[arg-type] # no queue: see enqueue


class _Records(QueueHandler):
    def enqueue(self, record: logging.LogRecord) -> None:
        scope = current.get()
        messages = scope.root.messages if scope is not None else None
        if messages is not None and messages.records:
            messages.tell({"log": {name: getattr(record, name) for name in _OF_RECORDS}})
