"""What runs left is printed so that it can be read, whatever it is."""

from __future__ import annotations

from typing import Any

import pytest

from shunter_cli import artifacts
from shunter_work_pools.contracts.tasks import Artifact


def left(kind: str, data: Any) -> Artifact:
    fields = {"key": "k", "kind": kind, "attempt": 1, "at": "2026-01-01T00:00:00Z", "bytes": 1}
    return Artifact.model_validate(fields | {"data": data})


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ([], ["The table is empty."]),
        ([[]], ["The table is empty."]),
        ([["a", "a"], [1, 2]], ["a  a", "1  2"]),
        ([["a", ">b"], [1, "x"]], ["a  >b", "1   x"]),
        ([["a"], [1, 2]], ["a", "1  2"]),
        ([{"a": 1}, {"b": [1]}], ["a  b", "1  -", "-  [1]"]),
        ([1, "x"], ["1", "x"]),
    ],
)
def test_tables(capsys: pytest.CaptureFixture[str], data: Any, lines: list[str]) -> None:
    artifacts.show(left("table", data))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == lines


def test_columns_for_which_there_is_no_room_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    artifacts.show(left("table", [{f"column{at:02}": at * 1_000_000 for at in range(40)}]))
    shown = capsys.readouterr()
    head, row = shown.out.splitlines()
    assert head.split() == [f"column{at:02}" for at in range(8)]
    assert row.split() == [str(at * 1_000_000) for at in range(8)]
    assert "32 columns more: --output json has all of them." in shown.err


def test_an_image_is_its_bytes_but_not_in_a_terminal(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = b"\x89PNG\x1b[31m"
    told = left("image", "data:image/png;base64,iVBORxtbMzFt")
    artifacts.show(told)
    assert capfdbinary.readouterr().out == image
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    artifacts.show(told)
    assert capfdbinary.readouterr().out == b"an image of 9 B: send it to a file, > k\n"
    for other in ("https://example.org/a.png", "data:image/png;base64,%%%"):
        artifacts.show(left("image", other))
        assert capfdbinary.readouterr().out.decode() == f"{other}\n"
