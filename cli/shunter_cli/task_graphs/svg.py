"""A graph as an SVG image: each node in a column by how much it follows, flows as boxes around their tasks.

A line to a column further on has a place in each column between, so that it passes boxes instead of going behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

from shunter_cli.task_graphs.blocks import Block, blocks, label, states, worst

if TYPE_CHECKING:
    from shunter_work_pools.contracts.tasks import GraphNode, TaskGraph

#: Colours of states: fill, and edge.
_COLOURS = {
    "Completed": ("#d9f2e0", "#2e8b57"),
    "Cached": ("#e0f2ef", "#2a9d8f"),
    "Failed": ("#fbdcdc", "#c0392b"),
    "Running": ("#dcecfb", "#2471a3"),
    "Retrying": ("#fdf0d0", "#b9770e"),
    "Pending": ("#f2f2f2", "#8a8a8a"),
    "Skipped": ("#efefef", "#a5a5a5"),
    "Cancelled": ("#ece4f2", "#7d5a94"),
}
_HEIGHT, _GAP_X, _GAP_Y, _PAD, _TITLE = 44, 56, 16, 16, 40
#: Width of a character and of one that is as wide as high, about; a name is cut to so many of them.
_CHARACTER, _WIDE, _LONGEST = 8.2, 13.5, 40
#: How often the nodes of all columns are put in order by those that they are linked to.
_SWEEPS = 8


@dataclass(eq=False)
class _Box:
    """A node with its place; of a flow, with what is in it. Without a node: where lines pass a column.

    Attributes:
        column: number of its column.
        edge: where its column ends.
        passes: where its lines pass the columns that follow.
    """

    node: GraphNode | None = None
    width: float = 0.0
    height: float = 0.0
    inner: list[_Box] = field(default_factory=list)
    before: dict[str, set[str]] = field(default_factory=dict)
    x: float = 0.0
    y: float = 0.0
    column: int = 0
    edge: float = 0.0
    passes: list[_Box] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """Where lines begin and end."""
        return self.y + self.height / 2

    def way(self, to: _Box) -> list[_Box]:
        """Where a line passes columns, from this to another one."""
        return self.passes[: max(0, to.column - self.column - 1)]


def drawn(graph: TaskGraph, title: str) -> str:
    """The text of the image.

    Args:
        title: for those who cannot see it.
    """
    by_node = {block.around.id if block.around else None: block for block in blocks(graph)}
    outer = by_node[None]
    boxes = [_box(node, by_node) for node in outer.nodes]
    width, height = _place(boxes, outer.before, 0.0, 0.0)
    width, height = width + 2 * _PAD, height + 2 * _PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" font-family="system-ui, sans-serif">',
        f"<title>{escape(_printable(title))}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        f'<g transform="translate({_PAD} {_PAD})">',
        *_drawn(boxes, outer.before),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(node: GraphNode, by_node: Mapping[str | None, Block]) -> _Box:
    texts = max(_width(_short(label(node))), _width(states(node)) * 0.85)
    box = _Box(node, texts + 24, _HEIGHT)
    block = by_node.get(node.id)
    if block is not None:
        box.inner = [_box(one, by_node) for one in block.nodes]
        box.before = block.before
        width, height = _place(box.inner, box.before, _PAD, _TITLE)
        box.width, box.height = max(box.width, width + 2 * _PAD), height + _TITLE + _PAD
    return box


def _place(
    boxes: Sequence[_Box], before: Mapping[str, Collection[str]], left: float, top: float
) -> tuple[float, float]:
    """Give boxes their places from a corner on; the width and height that they take."""
    columns = _columns(boxes, before)
    tall = max((_height(column) for column in columns), default=0.0)
    x = left
    for column in columns:
        wide = max(box.width for box in column)
        y = top + (tall - _height(column)) / 2
        for box in column:
            box.x, box.y, box.edge = x, y, x + wide
            y += box.height + _GAP_Y
        x += wide + _GAP_X
    return max(0.0, x - left - _GAP_X), tall


def _height(column: Sequence[_Box]) -> float:
    return sum(box.height for box in column) + _GAP_Y * (len(column) - 1)


def _columns(boxes: Sequence[_Box], before: Mapping[str, Collection[str]]) -> list[list[_Box]]:
    """Boxes by the longest way to them, each column in an order in which few lines cross."""
    by_id = {box.node.id: box for box in boxes if box.node}
    edges = [(by_id[one], by_id[after]) for after in by_id for one in before[after]]
    depth: dict[str, int] = {}
    for after, box in by_id.items():  # those that it follows have theirs; but in a circle
        box.column = depth[after] = 1 + max((depth.get(one, -1) for one in before[after]), default=-1)
    columns: list[list[_Box]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for box in boxes:
        columns[box.column].append(box)
    linked: dict[_Box, set[_Box]] = {box: set() for box in boxes}
    for start, end in edges:
        for at in range(start.column + len(start.passes) + 1, end.column):
            start.passes.append(_Box(column=at))
            columns[at].append(start.passes[-1])
        stops = [start, *start.way(end), end]
        for one, other in pairwise(stops):
            linked.setdefault(one, set()).add(other)
            linked.setdefault(other, set()).add(one)
    for _ in range(_SWEEPS):
        place = {box: (at + 0.5) / len(column) for column in columns for at, box in enumerate(column)}
        for column in columns:
            column.sort(key=lambda box: _mean([place[one] for one in linked[box]], place[box]))
    return columns


def _mean(places: Sequence[float], own: float) -> float:
    return sum(places) / len(places) if places else own


def _drawn(boxes: Sequence[_Box], before: Mapping[str, Collection[str]]) -> list[str]:
    by_id = {box.node.id: box for box in boxes if box.node}
    parts = [_line(by_id[one], box) for after, box in by_id.items() for one in sorted(before[after])]
    for name, box in by_id.items():
        assert box.node is not None
        fill, edge = _COLOURS.get(worst(box.node), _COLOURS["Pending"])
        shown, state = label(box.node), states(box.node)
        fill = "#fcfcfc" if box.inner else fill
        parts += [
            f'<g transform="translate({box.x:.1f} {box.y:.1f})" data-id="{escape(_printable(name))}">',
            f"<title>{escape(f'{_printable(shown)}: {state}')}</title>",
            f'<rect width="{box.width:.1f}" height="{box.height:.1f}" rx="6" fill="{fill}" stroke="{edge}"/>',
            f'<text x="12" y="18" font-size="13" fill="#1b1b1b">{escape(_short(shown))}</text>',
            f'<text x="12" y="34" font-size="11" fill="{edge}">{escape(state)}</text>',
            *_drawn(box.inner, box.before),
            "</g>",
        ]
    return parts


def _line(start: _Box, end: _Box) -> str:
    stops = [start, *start.way(end), end]
    path = f"M{start.x + start.width:.1f} {start.middle:.1f}"
    for one, other in pairwise(stops):
        bend = max(_GAP_X / 2, abs(other.x - one.edge) / 2)
        path += (
            f"H{one.edge:.1f}C{one.edge + bend:.1f} {one.middle:.1f} "
            f"{other.x - bend:.1f} {other.middle:.1f} {other.x:.1f} {other.middle:.1f}"
        )
    return f'<path d="{path}" fill="none" stroke="#9aa0a6" stroke-width="1.3"/>'


def _short(text: str) -> str:
    text = _printable(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _width(text: str) -> float:
    return sum(_WIDE if east_asian_width(char) in "WF" else _CHARACTER for char in text)


def _printable(text: str) -> str:
    """Without what XML cannot have."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
