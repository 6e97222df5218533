"""Lines of journals, as a flow's process writes them."""

from __future__ import annotations

import json
from typing import Any

#: Microseconds since 1970 of the first line.
BEGAN = 1_796_000_000_000_000


def key(at: int) -> str:
    """The key of a task run, by a number."""
    return f"{at:020x}"


def line(at: int, state: str, **more: Any) -> dict[str, Any]:
    """What happened to a task run, named by a number, in the microsecond of that number."""
    told: dict[str, Any] = {"k": key(at), "t": "fetch", "s": state, "n": 1, "at": BEGAN + at, "c": "c0ffee"}
    return told | more


def done(at: int, value: Any = None, **more: Any) -> dict[str, Any]:
    """One that completed, with its result."""
    return line(at, "C", b=BEGAN, r={"i": value}, **more)


def head(flow: str = "sums", code: str = "abc") -> dict[str, Any]:
    """The first line."""
    return {"v": 1, "flow": flow, "c": code, "run": None, "a": 1, "at": BEGAN}


def text(*lines: dict[str, Any]) -> bytes:
    """The bytes of a journal."""
    return b"".join(json.dumps(one, separators=(",", ":")).encode() + b"\n" for one in lines)
