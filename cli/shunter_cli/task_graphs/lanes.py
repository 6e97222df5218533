"""A graph in lines of text: each node has a line, and lanes lead down from it to those that follow.

    ●    fetch
    ├─╮
    ● │  left
    │ │
    │ ●  right
    ├─╯
    ●    total

A lane leads to one node; all that it follows join it. Where lanes cross, the one that goes down is drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

#: By what goes on from a place: up 1, down 2, left 4, right 8.
_LINES = {
    0: " ",
    1: "╵",
    2: "╷",
    3: "│",
    5: "╯",
    6: "╮",
    7: "┤",
    9: "╰",
    10: "╭",
    11: "├",
    12: "─",
    13: "┴",
    14: "┬",
    15: "┼",
}
_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8


def drawn(
    nodes: Sequence[str], before: Mapping[str, Collection[str]], marks: Mapping[str, str]
) -> list[tuple[str, str | None]]:
    """The lines: what is drawn in each, and the node whose line it is.

    Args:
        nodes: those that others follow first.
        before: what each follows; those that come later in ``nodes`` (a circle) are passed over.
        marks: one character for each.
    """
    place = {node: at for at, node in enumerate(nodes)}
    follows: dict[str, list[str]] = {node: [] for node in nodes}
    for node in nodes:
        for one in before[node]:
            if place[one] < place[node]:
                follows[one].append(node)
    lanes: list[str | None] = []
    lines: list[tuple[str, str | None]] = []
    for node in nodes:
        at = _lane(lanes, node)
        lines.append((" ".join(_passing(lanes, {at: marks[node]})), node))
        lanes[at] = None
        targets = sorted(follows[node], key=lambda one: place[one])
        if targets:
            lines.append((_turn(lanes, at, targets), None))
        while lanes and lanes[-1] is None:
            lanes.pop()
    return lines


def _lane(lanes: list[str | None], node: str) -> int:
    """The lane that leads to a node; a free one if none does."""
    for at, target in enumerate(lanes):
        if target == node:
            return at
    return _free(lanes, node)


def _free(lanes: list[str | None], target: str) -> int:
    at = lanes.index(None) if None in lanes else len(lanes)
    lanes[at : at + 1] = [target]
    return at


def _passing(lanes: Sequence[str | None], marks: Mapping[int, str]) -> list[str]:
    return [marks.get(at) or ("│" if lane is not None else " ") for at, lane in enumerate(lanes)]


def _turn(lanes: list[str | None], at: int, targets: Sequence[str]) -> str:
    """Lead from a lane to those of the targets, which there are or which are made; the line that is drawn."""
    ways = [_UP | _DOWN if lane is not None else 0 for lane in lanes]
    ways[at] = _UP
    ends = {at}
    for target in targets:
        if target in lanes:
            to = lanes.index(target)
        elif lanes[at] is None:
            lanes[at] = target
            to = at
        else:
            to = _free(lanes, target)
        ways += [0] * (to + 1 - len(ways))
        ways[to] |= _DOWN
        ends.add(to)
    left, right = min(ends), max(ends)
    text = ""
    for column, way in enumerate(ways):
        across = left <= column < right
        if column in ends:
            way |= (_LEFT if column > left else 0) | (_RIGHT if column < right else 0)
        elif left < column < right and not way:
            way = _LEFT | _RIGHT
        text += _LINES[way] + ("─" if across else " ")
    return text.rstrip()
