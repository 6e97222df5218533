"""The version of the installed distribution."""

from __future__ import annotations

from functools import cache


@cache
def version() -> str:
    """Such as ``0.1.0``."""
    from importlib.metadata import version as installed

    return installed("shunter")
