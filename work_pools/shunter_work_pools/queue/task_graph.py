"""The graph of a run's tasks, small enough to be looked at: task runs that are equals are one node.

Equals are of one name, below the same node, and after the same nodes: the elements of a map, whatever their number.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from shunter_work_pools.contracts.base import Micros, moment
from shunter_work_pools.contracts.tasks import GraphNode, TaskGraph

#: Nodes of a graph. Where there would be more, those of one name below one node are one, whatever they follow.
MOST = 1000


class Told(NamedTuple):
    """What is known of one task run.

    Attributes:
        attempt: of the run, that it was last seen in.
        upstream: keys, as JSON; None: there are none.
    """

    key: str
    parent: str | None
    name: str
    is_flow: bool
    state: str
    attempt: int
    created_at: Micros
    started_at: Micros | None
    ended_at: Micros | None
    upstream: str | None


Upstream = Mapping[str, Sequence[str]]


def graph_of(run_id: UUID, told: Iterable[Told], *, each: bool) -> TaskGraph:
    """The graph of some task runs.

    Args:
        each: each by itself.
    """
    by_key = {one.key: one for one in sorted(told, key=lambda one: (one.created_at, one.key))}
    upstream = {one.key: json.loads(one.upstream) if one.upstream else () for one in by_key.values()}
    before_all = {key: (*upstream[key], one.parent or "") for key, one in by_key.items()}
    ordered = [by_key[key] for key in sorted_by(before_all)]
    if each:
        group = {one.key: one.key for one in ordered}
    else:
        group = _groups(ordered, upstream)
        if len(set(group.values())) > MOST:
            group = _groups(ordered, None)
    members: dict[str, list[Told]] = {}
    for one in ordered:
        members.setdefault(group[one.key], []).append(one)
    before = {
        node: sorted({group[key] for one in ones for key in upstream[one.key] if key in group} - {node})
        for node, ones in members.items()
    }
    nodes = [_node(key, members[key], group) for key in sorted_by(before)]
    edges = [(upstream, node.id) for node in nodes for upstream in before[node.id]]
    return TaskGraph.model_construct(run=run_id, nodes=nodes, edges=edges, tasks=len(by_key))


def _groups(ordered: Iterable[Told], upstream: Upstream | None) -> dict[str, str]:
    """Of each task run, the first of its equals; given after those that they follow.

    Args:
        upstream: what each follows, if that makes a difference.
    """
    first: dict[Hashable, str] = {}
    group: dict[str, str] = {}
    for one in ordered:
        # What is not known (yet) makes no difference.
        known = () if upstream is None else upstream[one.key]
        after = frozenset(group[key] for key in known if key in group)
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
