"""A graph as an SVG image: each node in a column by how much it follows, flows as boxes around their tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

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
#: Width of a character, about; a name is cut to so many of them.
_CHARACTER, _LONGEST = 7.4, 40
#: How often the nodes of all columns are put in order by those that they are linked to.
_SWEEPS = 8


@dataclass
class _Box:
    """A node with its place; of a flow, with what is in it."""

    node: GraphNode
    width: float
    height: float
    inner: list[_Box] = field(default_factory=list)
    before: dict[str, set[str]] = field(default_factory=dict)
    x: float = 0.0
    y: float = 0.0


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
    texts = max(len(_short(label(node))) * _CHARACTER, len(states(node)) * _CHARACTER * 0.85)
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
            box.x, box.y = x, y
            y += box.height + _GAP_Y
        x += wide + _GAP_X
    return max(0.0, x - left - _GAP_X), tall


def _height(column: Sequence[_Box]) -> float:
    return sum(box.height for box in column) + _GAP_Y * (len(column) - 1)


def _columns(boxes: Sequence[_Box], before: Mapping[str, Collection[str]]) -> list[list[_Box]]:
    """Boxes by the longest way to them, each column in an order in which few lines cross."""
    depth: dict[str, int] = {}
    for box in boxes:  # those that it follows have theirs; but in a circle
        depth[box.node.id] = 1 + max((depth.get(one, -1) for one in before[box.node.id]), default=-1)
    columns: list[list[_Box]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for box in boxes:
        columns[depth[box.node.id]].append(box)
    columns = [column for column in columns if column]
    linked: dict[str, set[str]] = {box.node.id: set(before[box.node.id]) for box in boxes}
    for box in boxes:
        for one in before[box.node.id]:
            linked[one].add(box.node.id)
    for _ in range(_SWEEPS):
        place = {box.node.id: (at + 0.5) / len(column) for column in columns for at, box in enumerate(column)}
        for column in columns:
            column.sort(
                key=lambda box: _middle([place[one] for one in linked[box.node.id]], place[box.node.id])
            )
    return columns


def _middle(places: Sequence[float], own: float) -> float:
    return sum(places) / len(places) if places else own


def _drawn(boxes: Sequence[_Box], before: Mapping[str, Collection[str]]) -> list[str]:
    by_id = {box.node.id: box for box in boxes}
    parts = [_line(by_id[one], box) for box in boxes for one in sorted(before[box.node.id])]
    for box in boxes:
        fill, edge = _COLOURS.get(worst(box.node), _COLOURS["Pending"])
        name, state = _short(label(box.node)), states(box.node)
        hint = f"{_printable(label(box.node))}: {state}"
        fill = "#fcfcfc" if box.inner else fill
        parts += [
            f'<g transform="translate({box.x:.1f} {box.y:.1f})" data-id="{escape(_printable(box.node.id))}">',
            f"<title>{escape(hint)}</title>",
            f'<rect width="{box.width:.1f}" height="{box.height:.1f}" rx="6" fill="{fill}" stroke="{edge}"/>',
            f'<text x="12" y="18" font-size="13" fill="#1b1b1b">{escape(name)}</text>',
            f'<text x="12" y="34" font-size="11" fill="{edge}">{escape(state)}</text>',
            *_drawn(box.inner, box.before),
            "</g>",
        ]
    return parts


def _line(start: _Box, end: _Box) -> str:
    x1, y1 = start.x + start.width, start.y + start.height / 2
    x2, y2 = end.x, end.y + end.height / 2
    bend = max(_GAP_X / 2, abs(x2 - x1) / 2)
    return (
        f'<path d="M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}" '
        'fill="none" stroke="#9aa0a6" stroke-width="1.3"/>'
    )


def _short(text: str) -> str:
    text = _printable(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _printable(text: str) -> str:
    """Without what XML cannot have."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
