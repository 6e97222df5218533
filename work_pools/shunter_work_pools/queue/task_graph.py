"""The graph of a run's tasks, small enough to be looked at: task runs that are equals are one node.

Equals are of one name, below the same node, and after the same nodes: the elements of a map, whatever their number.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.tasks import GraphNode, TaskGraph

#: Nodes of a graph. Where there would be more, those of one name below one node are one, whatever they follow.
MOST = 1000


class Told(NamedTuple):
    """What is known of one task run."""

    key: str
    parent: str | None
    name: str
    is_flow: bool
    state: str
    created_at: Micros
    started_at: Micros | None
    ended_at: Micros | None
    upstream: tuple[str, ...]


def graph_of(run_id: UUID, told: Sequence[Told], *, each: bool) -> TaskGraph:
    """The graph of some task runs, given in the order in which they were made.

    Args:
        each: each by itself.
    """
    by_key = {one.key: one for one in told}
    ordered = [by_key[key] for key in sorted_by({one.key: (*one.upstream, one.parent or "") for one in told})]
    if each:
        group = {one.key: one.key for one in ordered}
    else:
        group = _groups(ordered, by_upstream=True)
        if len(set(group.values())) > MOST:
            group = _groups(ordered, by_upstream=False)
    members: dict[str, list[Told]] = {}
    for one in ordered:
        members.setdefault(group[one.key], []).append(one)
    before = {
        node: sorted({group[key] for one in ones for key in one.upstream if key in group} - {node})
        for node, ones in members.items()
    }
    nodes = [_node(key, members[key], group) for key in sorted_by(before)]
    edges = [(upstream, node.id) for node in nodes for upstream in before[node.id]]
    return TaskGraph.model_construct(run=run_id, nodes=nodes, edges=edges, tasks=len(told))


def _groups(ordered: Iterable[Told], *, by_upstream: bool) -> dict[str, str]:
    """Of each task run, the first of its equals; given after those that they follow."""
    first: dict[Hashable, str] = {}
    group: dict[str, str] = {}
    for one in ordered:
        # What is not known (yet) makes no difference.
        after = frozenset(group[key] for key in one.upstream if key in group) if by_upstream else None
        likeness = (group.get(one.parent or ""), one.name, one.is_flow, after)
        group[one.key] = first.setdefault(likeness, one.key)
    return group


def _node(key: str, ones: list[Told], group: Mapping[str, str]) -> GraphNode:
    began = [one.started_at for one in ones if one.started_at is not None]
    ended = [one.ended_at for one in ones if one.ended_at is not None]
    return GraphNode.model_construct(
        id=key,
        name=ones[0].name,
        flow=ones[0].is_flow,
        count=len(ones),
        states=dict(sorted(Counter(one.state for one in ones).items())),
        parent=group.get(ones[0].parent or ""),
        started_at=moment(min(began)) if began else None,
        ended_at=moment(max(ended)) if len(ended) == len(ones) else None,
    )


def sorted_by(before: Mapping[str, Sequence[str]]) -> list[str]:
    """Keys after all that comes before each, else in their own order; those in a circle come last."""
    place = {key: at for at, key in enumerate(before)}
    waits = {key: sum(one in place for one in {*ones} - {key}) for key, ones in before.items()}
    follows: dict[str, list[str]] = {}
    for key, ones in before.items():
        for one in {*ones} - {key}:
            follows.setdefault(one, []).append(key)
    ready = [(place[key], key) for key, count in waits.items() if not count]
    heapq.heapify(ready)
    found = []
    while ready:
        _, key = heapq.heappop(ready)
        found.append(key)
        for one in follows.get(key, ()):
            waits[one] -= 1
            if not waits[one]:
                heapq.heappush(ready, (place[one], one))
    return found + [key for key in before if waits[key]]
