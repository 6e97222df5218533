"""Values that the chart for the server refuses, and what it says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Right by themselves; each row changes one thing of them.
RIGHT: Mapping[str, Any] = {}

#: Values beside RIGHT (over it), and a pattern (re.search) that the error has: it names the value.
ROWS: Sequence[tuple[Mapping[str, Any], str]] = (
    ({"replicas": "two"}, r"at '/replicas': got string, want integer"),
    ({"imagee": {}}, r"additional properties 'imagee' not allowed"),
)
