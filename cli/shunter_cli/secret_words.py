"""Where the value of a variable comes from, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def origin(value: Mapping[str, Any]) -> str:
    """``secret warehouse``, for a variable whose value is one."""
    return f"secret {value['secret']}" if "secret" in value else f"the agent's secret {value['agent_secret']}"
