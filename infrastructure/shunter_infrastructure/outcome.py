"""What a run left behind for its end: the result in ``result.json``, the failure in ``failure.json``."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shunter_work_pools.contracts.deployments import RESULT_LIMIT

RESULT = "result.json"
FAILURE = "failure.json"
#: Deeper nested values are refused: parsers down the line have limits of this order.
DEPTH_LIMIT = 100
_FAILURE_LIMIT = 64 * 1024
_TEXT_LIMIT = 4000


@dataclass(frozen=True)
class Failure:
    """How the runner of a Python entrypoint failed.

    Attributes:
        kind: ``exception`` (raised by the user's function) or ``source`` (it could not be had).
        text: ``Type: message`` or a sentence.
    """

    kind: str
    text: str


def read_result(folder: Path, owner: int | None = None) -> tuple[Any, str | None]:
    """The result a run left and, if it cannot be used, a sentence that says why. Never cut, never partly.

    Args:
        owner: user whose file it must be, where that is not the agent's: a hard link to somebody else's is none.
    """
    try:
        data = _read(folder / RESULT, RESULT_LIMIT, owner)
    except OSError as exc:
        return None, f"The result in $SHUNTER_RESULT could not be read: {exc.strerror}."
    except _Unfit as exc:
        return None, f"The result in $SHUNTER_RESULT was not kept: {exc}."
    return (None, None) if data is None else parsed_result(data)


def parsed_result(data: bytes) -> tuple[Any, str | None]:
    """The same of what was in the file."""
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
        _check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair has no encoding
    except UnicodeError:
        return None, "The result in $SHUNTER_RESULT was not kept: it is not UTF-8 text."
    except RecursionError:
        return None, f"The result in $SHUNTER_RESULT was not kept: it is nested deeper than {DEPTH_LIMIT}."
    except ValueError as exc:
        what = str(exc) if data.strip() else "the file is empty"
        return None, f"The result in $SHUNTER_RESULT was not kept: it is not JSON ({what})."
    return value, None


def read_failure(folder: Path, owner: int | None = None) -> Failure | None:
    """The failure left by the runner, if any; see :func:`read_result`."""
    try:
        data = _read(folder / FAILURE, _FAILURE_LIMIT, owner)
    except (OSError, _Unfit):
        return None
    return None if data is None else parsed_failure(data)


def parsed_failure(data: bytes) -> Failure | None:
    """The same of what was in the file."""
    try:
        value = json.loads(data)
        text = str(value["text"]).encode(errors="backslashreplace").decode()
        return Failure(
            str(value["kind"]), text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + " … (cut)"
        )
    except (ValueError, KeyError, TypeError):
        return None


class _Unfit(Exception):
    """The file is not what it should be."""


def _read(path: Path, limit: int, owner: int | None) -> bytes | None:
    """The bytes of a regular file of at most ``limit``; None if there is no file.

    A run decides what lies there, and the agent may read more than the run may: nothing but its own file counts.
    """
    try:
        # Not blocking: a run may have put a named pipe there.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise _Unfit("it is a symbolic link") from exc
        raise
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise _Unfit("it is not a regular file")
        if owner is not None and info.st_uid != owner:
            raise _Unfit("it is a file of another user")
        if info.st_size > limit:
            raise _Unfit(f"it has {info.st_size} bytes, more than the {limit} allowed")
        return os.read(fd, limit)
    finally:
        os.close(fd)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT + 1:
            raise RecursionError
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
