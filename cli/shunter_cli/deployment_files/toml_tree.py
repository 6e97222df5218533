"""TOML to a tree of values with places.

``tomllib`` reads; it keeps no places, so the text is walked a second time, only to note where keys and
values begin. What ``tomllib`` took is right, so the walk need not judge, and it is told by the first fault
where ``tomllib`` stopped.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from datetime import date, datetime, time
from typing import Any

from shunter_cli.deployment_files.places import Fault, Node, Path, Place
from shunter_cli.deployment_files.yaml_tree import DEPTH_LIMIT, DIGITS_LIMIT, NODE_LIMIT, Unreadable

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_TEXT = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE = re.compile(r"\d{4}-\d\d-\d\d \d\d:[^,\]}\s#]+|[^,\]}\s#]+")
_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def parse(text: str) -> tuple[Node | None, list[Fault]]:
    """The tree of a TOML text (None: it cannot be read), and what is wrong with it."""
    walk = _Walk(text)
    try:
        found = tomllib.loads(text)
    except RecursionError:
        return None, [Fault(None, (), f"nested deeper than {DEPTH_LIMIT} levels", "Make it flatter.")]
    except tomllib.TOMLDecodeError as exc:
        return None, walk.twice() or [_syntax(exc, walk)]
    except ValueError as exc:  # a date that no calendar has, a number of thousands of digits
        return None, [Fault(None, (), f"not TOML: {exc}", "Check its numbers and dates.")]
    try:
        walk.document()
        grower = _Grower(walk)
        return grower.node(found, ()), grower.faults
    except Unreadable as exc:
        return None, [exc.fault]


def _syntax(exc: tomllib.TOMLDecodeError, walk: _Walk) -> Fault:
    message = str(exc)
    place = walk.place(len(walk.text))
    if (where := _WHERE.search(message)) is not None:
        message = message[: where.start()]
        if where[1]:
            place = Place(int(where[1]), int(where[2]))
    return Fault(
        place, (), f"not TOML: {message[:1].lower()}{message[1:]}", "Check quotes and brackets here."
    )


class _Walk:
    """Notes where keys and values begin."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self._lines = [0, *(match.end() for match in re.finditer("\n", self.text))]
        self._at = 0
        self.values: dict[Path, Place] = {}
        self.keys: dict[Path, Place] = {}
        self.repeated: list[Fault] = []
        self._tables: dict[Path, int] = {}  # how many [[tables]] a path has

    def place(self, at: int) -> Place:
        """Line and column of an offset."""
        line = bisect.bisect_right(self._lines, at)
        return Place(line, at - self._lines[line - 1] + 1)

    def twice(self) -> list[Fault]:
        """Keys that are given twice, in a text that ``tomllib`` refuses."""
        try:
            self.document()
        except Exception:  # the text is wrong: as far as it could be followed
            return self.repeated
        return self.repeated

    def document(self) -> None:
        """Walk through all of it."""
        table: Path = ()
        while self._blank() < len(self.text):
            if self.text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _blank(self) -> int:
        match = _BLANK.match(self.text, self._at)
        self._at = match.end() if match else self._at
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self._at)
        if match is None or match.end() == self._at:
            raise Unreadable(Fault(self.place(self._at), (), "not TOML", "Check quotes and brackets here."))
        self._at = match.end()
        return match[0]

    def _key(self) -> list[tuple[str, Place]]:
        steps = []
        while True:
            place = self.place(self._at)
            word = self._take(_KEY)
            steps.append((tomllib.loads(f"k={word}")["k"] if word[0] in "\"'" else word, place))
            if _DOT.match(self.text, self._at) is None:
                return steps
            self._take(_DOT)

    def _header(self) -> Path:
        place = self.place(self._at)
        many = self.text.startswith("[[", self._at)
        self._at += 2 if many else 1
        self._blank()
        path: Path = ()
        steps = self._key()
        for key, key_place in steps:
            path = self._current((*path, key))
            self.keys.setdefault(path, key_place)
            self.values.setdefault(path, place)
        if many:
            named = path if path not in self._tables and not self._is_row(path) else path[:-1]
            self._tables[named] = self._tables.get(named, 0) + 1
            path = (*named, self._tables[named] - 1)
            self.values[path] = place
        self._at = self.text.index("]", self._at) + (2 if many else 1)
        return path

    def _is_row(self, path: Path) -> bool:
        return bool(path) and path[:-1] in self._tables

    def _current(self, path: Path) -> Path:
        """With the index of the last [[table]] behind a path that names such."""
        return (*path, self._tables[path] - 1) if path in self._tables else path

    def _pair(self, table: Path) -> None:
        path = table
        for key, place in (steps := self._key()):
            path = (*path, key)
            self.values.setdefault(path, place)
            first = self.keys.setdefault(path, place)
            if first != place and key is steps[-1][0]:
                detail = f"the key {key!r} is there already, in line {first.line}, column {first.column}"
                self.repeated.append(Fault(place, path, detail, "Remove one of them."))
        self._blank()
        self._at += 1  # the sign =
        self._value(path)

    def _value(self, path: Path) -> None:
        self._blank()
        self.values[path] = self.place(self._at)
        if len(path) > DEPTH_LIMIT:
            detail = f"nested deeper than {DEPTH_LIMIT} levels"
            raise Unreadable(Fault(self.values[path], (), detail, "Make it flatter."))
        first = self.text[self._at : self._at + 1]
        if first in ("[", "{"):
            self._inside(path, "]" if first == "[" else "}")
        else:
            self._take(_TEXT if first in ('"', "'") else _BARE)

    def _inside(self, path: Path, end: str) -> None:
        """The items of an array or the pairs of an inline table."""
        self._at += 1
        index = 0
        while self.text[self._blank()] != end:
            if self.text[self._at] == ",":
                self._at += 1
                continue
            if end == "]":
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)
        self._at += 1


class _Grower:
    """Nodes of what ``tomllib`` read, with the places of a walk."""

    def __init__(self, walk: _Walk) -> None:
        self.walk = walk
        self.faults: list[Fault] = []
        self._count = 0

    def node(self, value: Any, path: Path) -> Node:
        place = self.walk.values.get(path, Place(1, 1))
        self._count += 1
        if len(path) > DEPTH_LIMIT:
            raise Unreadable(Fault(place, (), f"nested deeper than {DEPTH_LIMIT} levels", "Make it flatter."))
        if self._count > NODE_LIMIT:
            raise Unreadable(Fault(place, (), f"the file has more than {NODE_LIMIT:,} values", "Split it."))
        if isinstance(value, dict):
            keys = {key: self.walk.keys.get((*path, key), place) for key in value}
            return Node({key: self.node(one, (*path, key)) for key, one in value.items()}, place, path, keys)
        if isinstance(value, list):
            return Node([self.node(one, (*path, index)) for index, one in enumerate(value)], place, path)
        return Node(self._scalar(value, place, path), place, path)

    def _scalar(self, value: Any, place: Place, path: Path) -> Any:
        if isinstance(value, datetime | date | time):
            return value.isoformat()  # the model reads times from text, as YAML has them
        odd = isinstance(value, float) and not abs(value) < float("inf")
        if odd or (isinstance(value, int) and abs(value) >= 10**DIGITS_LIMIT):
            detail = f"{value} is no number of JSON" if odd else "the number is too long"
            self.faults.append(Fault(place, path, detail, "Write it shorter, or as text in quotes."))
            return 0
        return value
