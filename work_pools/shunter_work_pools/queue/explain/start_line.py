"""The command that starts an agent for a kind of runs, and the machine that it is to be started on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from sqlalchemy import select

from shunter_work_pools.contracts.capacity import DIVISIBLE, shown
from shunter_work_pools.queue.explain.reason import names
from shunter_work_pools.queue.lanes import needed
from shunter_work_pools.queue.standing import Standing
from shunter_work_pools.storage.schema import agents
from shunter_work_pools.storage.store import Tx

#: Keys of tags that agents find by themselves, of their machine or its cloud; see docs/capacity.md.
FOUND = frozenset(
    {"os", "arch", "cpus", "memory", "gpu", "cloud", "region", "zone", "instance-type"},
)
#: Characters of a pool's name that the name of an agent begins with: there is room for a number.
_BEGINS = 90


def start_line(
    tx: Tx,
    kind: Any,
    there: Sequence[Standing],
    *,
    queue: bool = False,
    more: Mapping[str, float] | None = None,
) -> str:
    """The command, with what the runs demand of an agent; then, in words, what its machine must have.

    Args:
        kind: a row of lanes with its pool and queue, or a :class:`~shunter_work_pools.queue.standing.Kind`.
        there: agents that serve the pool. By default an agent is called after machine and pool; where there may be
            one of this name, it is given another.
        queue: whether to serve no more than the queue of the runs.
        more: cores and memory that no agent has.
    """
    by_hand, found = required(kind, there)
    devices = {name: amount for name, amount in needed(kind.need).items() if name not in DIVISIBLE}
    words = [f"--pool {kind.pool}"]
    if queue:
        words.append(f"--queue {kind.queue}")
    if there:
        words.append(f"--name {_new_name(tx, kind.pool)}")
    words += [f"--tag {tag}" for tag in by_hand]
    words += [f"--capacity {word}" for word in shown(devices).split()]
    machine = (
        found + shown({name: amount for name, amount in (more or {}).items() if name in DIVISIBLE}).split()
    )
    return f"`shunter agent start {' '.join(words)}`" + (
        f" on a machine with {names(machine)}" if machine else ""
    )


def required(kind: Any, there: Iterable[Standing]) -> tuple[list[str], list[str]]:
    """The tags that an agent must be given by hand, and those that it finds by itself on the right machine.

    A tag that agents could find is one to be given if one of those that are there was given its key.
    """
    given = {_key(tag) for one in there for tag in one.row.tags}
    tags = kind.require.split()
    found = [tag for tag in tags if _key(tag) in FOUND - given]
    return [tag for tag in tags if tag not in found], found


def _key(tag: str) -> str:
    return tag.partition("=")[0]


def _new_name(tx: Tx, pool: str) -> str:
    """Of no agent yet."""
    begin = f"{pool[:_BEGINS]}-"
    taken = set(
        tx.conn.scalars(select(agents.c.name).where(agents.c.name.startswith(begin, autoescape=True)))
    )
    return next(name for number in count(2) if (name := f"{begin}{number}") not in taken)
