"""Values that the chart shunter-agent refuses."""

from __future__ import annotations

from tests.charts.bad_values import Bad

ROWS = [
    Bad("image.tag", {"image": {"tag": 5}}, "got number, want string"),
    Bad("image.colour", {"image": {"colour": "red"}}, "not allowed"),
    Bad("poolz", {"poolz": ["a"]}, "not allowed"),
    Bad("pools", {"pools": []}, "pools is empty: name at least one pool"),
    Bad("api.url", {"api": {"url": ""}}, "api.url is missing"),
]
