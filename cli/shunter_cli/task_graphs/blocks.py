"""A graph as blocks: the tasks of one flow each, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shunter_work_pools.contracts.tasks import GraphNode, TaskGraph

#: The states, what wants to be seen first.
SEVERITY = ("Failed", "Cancelled", "Skipped", "Retrying", "Running", "Pending", "Cached", "Completed")


@dataclass
class Block:
    """What is directly below one node, or below none.

    Attributes:
        around: the node that they are in.
        nodes: those that others follow come first.
        before: of each, by id, those in the block that it follows.
    """

    around: GraphNode | None
    nodes: list[GraphNode] = field(default_factory=list)
    before: dict[str, set[str]] = field(default_factory=dict)


def blocks(graph: TaskGraph) -> list[Block]:
    """The blocks of a graph, each after the one that its node is in.

    An edge into or out of what is within a node is one of that node, in the block where both ends are.
    """
    by_id = {node.id: node for node in graph.nodes}
    made: dict[str | None, Block] = {None: Block(None)}
    for node in graph.nodes:
        around = node.parent if node.parent in by_id else None
        block = made.setdefault(around, Block(by_id.get(around or "")))
        block.nodes.append(node)
        block.before[node.id] = set()
    chains = {node.id: _chain(node, by_id) for node in graph.nodes}
    for first, second in graph.edges:
        if first not in chains or second not in chains:
            continue
        for one, other in zip(chains[first], chains[second], strict=False):
            if one != other:
                parent = by_id[one].parent
                made[parent if parent in by_id else None].before[other].add(one)
                break
    return _in_order(made)


def _in_order(made: Mapping[str | None, Block]) -> list[Block]:
    found: list[Block] = []
    waiting: list[str | None] = [None]
    while waiting:
        block = made.get(waiting.pop())
        if block is not None:
            found.append(block)
            waiting += [node.id for node in reversed(block.nodes)]
    return found


def _chain(node: GraphNode, by_id: Mapping[str, GraphNode]) -> list[str]:
    """Ids of what is around a node, the outermost first, and of itself."""
    found = [node.id]
    seen = {node.id}
    while (parent := by_id[found[-1]].parent) in by_id and parent not in seen:
        assert parent is not None
        found.append(parent)
        seen.add(parent)
    return found[::-1]


def worst(node: GraphNode) -> str:
    """The state of a node that wants to be seen first."""
    return next((state for state in SEVERITY if state in node.states), "Pending")


def label(node: GraphNode) -> str:
    """Its name, and how many there are."""
    return f"{node.name} ×{node.count:,}" if node.count > 1 else node.name


def states(node: GraphNode) -> str:
    """How many are in which state, the state alone where all are in one."""
    if len(node.states) == 1:
        return next(iter(node.states))
    known = sorted(node.states, key=lambda state: SEVERITY.index(state) if state in SEVERITY else -1)
    return ", ".join(f"{state} {node.states[state]:,}" for state in known)
