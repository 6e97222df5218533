"""YAML to a tree of values with places.

The library scans and parses; the tree is built here, from its events, because that is where one can see
a nesting or an expansion grow and stop before memory is spent, and where both places of a key that is
written twice are known. Plain scalars mean what the core schema of YAML 1.2.2 says (section 10.3.2): ``no``
and ``12:30:00`` are texts. Tags, merge keys and further documents are not part of a deployment file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shunter_cli.deployment_files.finding import place_in
from shunter_cli.deployment_files.places import Fault, Node, Path, Place

#: Values that a file may have once its aliases are followed; a long text counts for several.
NODE_LIMIT = 100_000
_CHARACTERS = 100
#: Levels of lists and mappings in each other.
DEPTH_LIMIT = 100
#: Digits of a number.
DIGITS_LIMIT = 300

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_START = Place(1, 1)
_HALF = re.compile("[\ud800-\udfff]")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Unreadable(Exception):
    """Reading cannot go on after this fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


def parse(text: str) -> tuple[Node | None, list[Fault]]:
    """The tree of a YAML text (None: it is empty or cannot be read), and what is wrong with it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    tree = _Tree()
    try:
        tree.read(YAML(typ="safe", pure=True).parse(text))
    except Unreadable as exc:
        return None, [*tree.faults, exc.fault]
    except MarkedYAMLError as exc:
        return None, [*tree.faults, _syntax(exc, text)]
    except YAMLError as exc:  # a character that YAML does not allow
        at = getattr(exc, "position", 0)
        detail = f"the character U+{getattr(exc, 'character', 0):04X} is not allowed"
        return None, [
            *tree.faults,
            Fault(place_in(text, at), (), detail, "Remove it, or write it as an escape."),
        ]
    return tree.root, tree.faults


def scalar(text: str) -> Any:
    """What a plain scalar means: None, bool, int, float or the text itself.

    Raises:
        ValueError: a number that JSON does not have, or with too many digits.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is no number of JSON")
    is_int = _INT.fullmatch(text)
    if not is_int and not _FLOAT.fullmatch(text):
        return whole(text)
    if len(text) > DIGITS_LIMIT:
        raise ValueError(f"a number of {len(text)} digits is too long")
    if is_int:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large a number")
    return number


def whole(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: it has half a character, as ``"\\ud800"`` writes one.
    """
    if _HALF.search(text):
        raise ValueError("half of a surrogate pair is no character")
    return text


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet."""

    node: Node
    anchor: str | None
    size: int = 1
    key: str | None = None
    key_place: Place = _START


@dataclass
class _Tree:
    """Nodes made of events. The steps of a path come from what is open."""

    root: Node | None = None
    faults: list[Fault] = field(default_factory=list)
    open: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Node, int]] = field(default_factory=dict)
    documents: int = 0

    def read(self, events: Iterator[Any]) -> None:
        steps = {
            "DocumentStartEvent": self._document,
            "ScalarEvent": self._scalar,
            "AliasEvent": self._alias,
            "MappingStartEvent": lambda event: self._begin(event, {}),
            "SequenceStartEvent": lambda event: self._begin(event, []),
            "MappingEndEvent": self._end,
            "SequenceEndEvent": self._end,
        }
        for event in events:
            if step := steps.get(type(event).__name__):
                step(event)

    def _document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            detail = "a second document begins here"
            raise Unreadable(Fault(_at(event), (), detail, "Put all deployments under one `deployments:`."))

    def _scalar(self, event: Any) -> None:
        self._refuse_tag(event)
        place, value = _at(event), event.value
        top = self.open[-1] if self.open else None
        if top is not None and isinstance(top.node.value, dict) and top.key is None:
            self._key(top, event, place)
            return
        try:
            value = scalar(value) if event.style is None else whole(value)
        except ValueError as exc:
            self._fault(place, self._path(), str(exc), "Write it shorter, or as text in quotes.")
            value = 0
        node = Node(value, place, self._path())
        size = _weight(event.value)
        self._anchor(event.anchor, node, size)
        self._add(node, size, place)

    def _key(self, top: _Open, event: Any, place: Place) -> None:
        path = top.node.path
        try:
            is_text = isinstance(whole(event.value) if event.style else scalar(event.value), str)
        except ValueError:
            is_text = False
        if not is_text:
            detail = f"the key {event.value or 'null'} is not text"
            self._fault(place, path, detail, f'Put it in quotes: "{event.value}".')
        if event.style is None and event.value == "<<":
            remedy = "`defaults:` at the top of the file holds what its deployments share."
            self._fault(place, path, "<< (merging mappings) is not part of YAML 1.2", remedy)
        if event.value in top.node.keys:
            first = top.node.keys[event.value]
            detail = f"the key {event.value!r} is there already, in line {first.line}, column {first.column}"
            self._fault(place, (*path, event.value), detail, "Remove one of them.")
        self._anchor(event.anchor, Node(event.value, place, path), 1)
        top.key, top.key_place = event.value, place
        top.size += _weight(event.value) - 1

    def _alias(self, event: Any) -> None:
        place = _at(event)
        if self.open and isinstance(self.open[-1].node.value, dict) and self.open[-1].key is None:
            raise Unreadable(Fault(place, self._path(), "an alias cannot be a key", "Write the key itself."))
        if event.anchor not in self.anchors:
            inside = any(one.anchor == event.anchor for one in self.open)
            detail = f"*{event.anchor} contains itself" if inside else f"there is no &{event.anchor} above"
            remedy = "Write out what is meant." if inside else "Check its name."
            raise Unreadable(Fault(place, self._path(), detail, remedy))
        node, size = self.anchors[event.anchor]
        self._add(node, size, place)

    def _begin(self, event: Any, value: Any) -> None:
        self._refuse_tag(event)
        top = self.open[-1] if self.open else None
        if top is not None and isinstance(top.node.value, dict) and top.key is None:
            detail = "a list or mapping cannot be a key"
            remedy = "A text that begins with [ or { (or ${) needs quotes."
            raise Unreadable(Fault(_at(event), self._path(), detail, remedy))
        if len(self.open) >= DEPTH_LIMIT:
            detail = f"nested deeper than {DEPTH_LIMIT} levels"
            raise Unreadable(Fault(_at(event), (), detail, "Make it flatter."))
        self.open.append(_Open(Node(value, _at(event), self._path()), event.anchor))

    def _end(self, event: Any) -> None:
        done = self.open.pop()
        self._anchor(done.anchor, done.node, done.size)
        self._add(done.node, done.size, done.node.place)

    def _add(self, node: Node, size: int, place: Place) -> None:
        """Put a finished value where it belongs. ``size``: values in it, aliases followed."""
        if not self.open:
            self.root = node
            return
        top = self.open[-1]
        top.size += size
        if top.size > NODE_LIMIT:
            detail = f"the file has more than {NODE_LIMIT:,} values, with what its aliases repeat"
            raise Unreadable(Fault(place, (), detail, "Use fewer aliases, or several files."))
        if isinstance(top.node.value, list):
            top.node.value.append(node)
            return
        assert top.key is not None
        if top.key not in top.node.keys:
            top.node.value[top.key] = node
            top.node.keys[top.key] = top.key_place
        top.key = None

    def _path(self) -> Path:
        """The path of the value that comes next."""
        if not self.open:
            return ()
        top = self.open[-1]
        if isinstance(top.node.value, list):
            return (*top.node.path, len(top.node.value))
        return (*top.node.path, top.key) if top.key is not None else top.node.path

    def _anchor(self, name: str | None, node: Node, size: int) -> None:
        if name is not None:
            self.anchors[name] = (node, size)

    def _refuse_tag(self, event: Any) -> None:
        if event.ctag is not None and str(event.ctag):
            detail = f"the tag {event.ctag} cannot be used"
            self._fault(_at(event), self._path(), detail, "Write the value without it.")

    def _fault(self, place: Place, path: Path, detail: str, remedy: str) -> None:
        self.faults.append(Fault(place, path, detail, remedy))


def _weight(text: str) -> int:
    return 1 + len(text) // _CHARACTERS


def _at(event: Any) -> Place:
    mark = event.start_mark
    return Place(mark.line + 1, mark.column + 1)


def _syntax(exc: Any, text: str) -> Fault:
    mark = exc.problem_mark or exc.context_mark
    line, column = mark.line, mark.column
    lines = text.splitlines()
    written = lines[line] if line < len(lines) else ""
    blank = written[: len(written) - len(written.lstrip())]
    if written[column : column + 1] == "\t" or ("\t" in blank and column <= len(blank)):
        tab = column if written[column : column + 1] == "\t" else blank.index("\t")
        detail = "a tab is used to indent, which YAML does not allow"
        return Fault(Place(line + 1, tab + 1), (), detail, "Indent with spaces.")
    problem = str(exc.problem or "it cannot be read").strip()
    while_ = f" {exc.context}" if exc.context else ""
    if exc.context and exc.context_mark and exc.context_mark.line != line:
        while_ += f" that began in line {exc.context_mark.line + 1}"
    remedy = "Check indentation, quotes and brackets here and in the line above."
    return Fault(Place(line + 1, column + 1), (), f"not YAML: {problem}{while_}", remedy)
