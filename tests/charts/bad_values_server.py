"""Values that the chart shunter-server refuses."""

from __future__ import annotations

from tests.charts.bad_values import Bad

ROWS = [
    Bad("image.tag", {"image": {"tag": 5}}, "got number, want string"),
    Bad("image.colour", {"image": {"colour": "red"}}, "not allowed"),
    Bad("imagee", {"imagee": {}}, "not allowed"),
    Bad("replicas", {"replicas": 2}, "replicas"),
]
