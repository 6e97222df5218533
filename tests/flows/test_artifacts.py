"""What tables, links and images may be made of, as the journal has it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shunter import artifacts, flow, journal

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """The artifacts in the journal of this process."""
    path = tmp_path / "journal"
    monkeypatch.setattr(journal, "of_process", lambda: own)
    own = journal.Journal(str(path))

    def read() -> list[dict[str, Any]]:
        own.close()
        lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
        return [line["art"] for line in lines if "art" in line]

    return read


class Number:
    """As those of numpy."""

    ndim = 0

    def item(self) -> int:
        return 3


class Frame:
    """As those of pandas."""

    columns = ("a",)

    def to_dict(self, kind: str) -> list[dict[str, Any]]:
        assert kind == "records"
        return [{"a": 1}, {"a": math.nan}]


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        ([{"a": 1}, {"b": "x"}], [{"a": 1}, {"b": "x"}]),
        ([["a", "b"], (1, 2)], [["a", "b"], [1, 2]]),
        ({"a": [1, 2], "b": (3, 4)}, [["a", "b"], [1, 3], [2, 4]]),
        (({"a": n} for n in range(2)), [{"a": 0}, {"a": 1}]),
        ([{"a": math.nan, "b": [math.inf, 1.5]}], [{"a": None, "b": [None, 1.5]}]),
        ([{"a": Number(), "b": Path("x")}], [{"a": 3, "b": "x"}]),
        (Frame(), [{"a": 1}, {"a": None}]),
        ([], []),
    ],
)
def test_a_table_is_made_of(rows: Any, data: Any, left: Callable[[], list[dict[str, Any]]]) -> None:
    @flow
    def whole() -> None:
        artifacts.table("prices", rows, "what was found")

    whole()
    assert left() == [{"key": "prices", "kind": "table", "data": data, "description": "what was found"}]


@pytest.mark.parametrize(
    ("leave", "error", "told"),
    [
        (lambda: artifacts.table("t", "abc"), TypeError, "a row is a mapping or a list, not str"),
        (lambda: artifacts.table("t", [1]), TypeError, "a row is a mapping or a list, not int"),
        (lambda: artifacts.table("t", {"a": [1], "b": []}), ValueError, "shorter"),
        (lambda: artifacts.table("T t", []), ValueError, "key 'T t' is not made of small letters"),
        (lambda: artifacts.table("t", [["x" * 300_000]]), ValueError, "more than the 262144 allowed"),
        (lambda: artifacts.link("l", "javascript:alert(1)"), ValueError, "is no URL"),
        (lambda: artifacts.image("i", b"<svg>"), ValueError, "neither PNG, JPEG, GIF nor WebP"),
        (lambda: artifacts.image("i", "gone.png"), FileNotFoundError, "gone.png"),
    ],
)
def test_what_is_none_is_refused(
    leave: Callable[[], None],
    error: type[Exception],
    told: str,
    left: Callable[[], list[dict[str, Any]]],
) -> None:
    with pytest.raises(error, match=told):
        leave()
    assert left() == []


def test_an_image_may_be_a_file_or_bytes(tmp_path: Path, left: Callable[[], list[dict[str, Any]]]) -> None:
    (tmp_path / "dot.png").write_bytes(PNG)
    artifacts.image("file", tmp_path / "dot.png")
    artifacts.image("bytes", PNG)
    artifacts.image("url", "https://example.org/dot.png")
    file, given, url = (one["data"] for one in left())
    assert file == given == "data:image/png;base64,iVBORw0KGgo="
    assert url == "https://example.org/dot.png"
