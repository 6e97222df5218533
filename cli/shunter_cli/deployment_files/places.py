"""Values that know where they were written, and faults that say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shunter_work_pools.contracts.errors import InvalidInput

#: Steps from the top of a file to a value: keys and indexes.
Path = tuple[str | int, ...]


class Place(NamedTuple):
    """Line and column, both from 1; columns count characters."""

    line: int
    column: int


@dataclass(slots=True)
class Node:
    """A value of a file.

    Attributes:
        value: None, bool, int, float, str, a list of nodes, or a dict of nodes by key.
        place: where the value begins.
        path: where it is in the file; an alias has that of its anchor.
        keys: of a mapping, where each key is written.
        substituted: whether a variable made (part of) this text.
    """

    value: Any
    place: Place
    path: Path = ()
    keys: dict[str, Place] = field(default_factory=dict)
    substituted: bool = False


class Written(str):
    """A text that a variable made (part of): where a number is wanted, it may stand for one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a file.

    Attributes:
        place: where; None: with the file as a whole.
        path: of the value it is about; empty: the file itself.
        detail: what is wrong.
        remedy: what to do about it.
    """

    place: Place | None
    path: Path
    detail: str
    remedy: str = ""

    def line(self, file: str) -> str:
        """``shunter.yaml:12:7: deployments[1].pool: ...`` as compilers write it."""
        at = f"{file}:{self.place.line}:{self.place.column}" if self.place else file
        subject = dotted(self.path)
        return f"{at}: {subject}: {self.detail}" if subject else f"{at}: {self.detail}"


class FileFaults(InvalidInput):
    """A file has faults; ``faults`` are all that were found, in the order of the file."""

    def __init__(self, file: str, faults: Iterable[Fault]) -> None:
        once = {(fault.place, fault.path, fault.detail): fault for fault in faults}
        self.file = file
        self.faults = sorted(once.values(), key=lambda fault: fault.place or Place(0, 0))
        many = f"{len(self.faults)} faults" if len(self.faults) > 1 else "a fault"
        super().__init__(f"{file} has {many}: nothing is deployed", "Mend it and deploy again.")

    def lines(self) -> list[str]:
        """The faults, each followed by what to do, indented."""
        return [
            line
            for fault in self.faults
            for line in (fault.line(self.file), *(f"  {more}" for more in fault.remedy.splitlines()))
        ]


def dotted(path: Sequence[str | int]) -> str:
    """``deployments[1].schedules[0].cron``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def plain(node: Node) -> Any:
    """The value without its places; texts that variables made are :class:`Written`."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return Written(node.value) if node.substituted else node.value


def nearest_node(node: Node, steps: Iterable[str | int]) -> tuple[Node, list[str | int]]:
    """The deepest node on a way down, and the steps that lead on from there to nothing."""
    rest = list(steps)
    while rest:
        step, found = rest[0], None
        if isinstance(node.value, dict):
            found = node.value.get(step)
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
        if found is None:
            break
        node = found
        rest.pop(0)
    return node, rest


def fault_at(node: Node, steps: Sequence[str | int], detail: str, remedy: str) -> Fault:
    """A fault of what is found at these steps below a node, or of the last thing on the way there."""
    found, rest = nearest_node(node, steps)
    last = found.path[-1] if found.path else None
    if not rest and isinstance(last, str):
        detail = detail.removeprefix(f"{last}: ")  # it is said already
    return Fault(found.place, (*found.path, *rest), detail, remedy)
