"""Loggers whose records keep level and name in the run's log."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper

FORMAT = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(name)s | %(message)s"


def get_logger(name: str | None = None) -> logging.Logger:
    """A logger; without a name that of the task or flow that asks.

    Inside a run every logger's records from INFO on reach the run's log, each with its time, level and logger's name,
    unless the program has set up logging itself. Elsewhere only those of Shunter's own loggers do.
    """
    if name is not None:
        return logging.getLogger(name)
    from shunter.scopes import current

    scope = current.get()
    return logging.getLogger(f"shunter.{scope.name}" if scope is not None else "shunter")


def set_up() -> None:
    """Have records go to the output, where nobody has arranged for them."""
    if os.environ.get("SHUNTER_RUN_ID"):
        _print_lines()
    root, own = logging.getLogger(), logging.getLogger("shunter")
    if root.handlers or own.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT, "%Y-%m-%d %H:%M:%S"))
    logger = root if os.environ.get("SHUNTER_RUN_ID") else own
    logger.addHandler(handler)
    if logger.level == logging.NOTSET or logger is root:
        logger.setLevel(logging.INFO)


def _print_lines() -> None:
    """Have tasks print line by line. Unbuffered, as entrypoints are run, ``print(a, b)`` writes each part by itself, and those
    of other threads get between them."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
