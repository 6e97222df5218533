"""A file against the model, and what a model cannot say; out come specs, or all faults at once.

A deployment with a fault does not hide the faults of the others, nor those of its own other fields: what is
sound by itself is looked at further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shunter_cli.deployment_files import toml_tree, variables, yaml_tree
from shunter_cli.deployment_files.finding import read_text
from shunter_cli.deployment_files.model import SCHEDULES_LIMIT, File, ScheduleEntry
from shunter_cli.deployment_files.places import Fault, FileFaults, Node, fault_at, nearest_node, plain
from shunter_cli.deployment_files.places import Path as Steps
from shunter_cli.deployment_files.schedule_entries import schedule_faults
from shunter_cli.deployment_files.specs import as_written, deployment
from shunter_cli.deployment_files.wording import words
from shunter_work_pools.contracts.deployments import Named
from shunter_work_pools.contracts.errors import Refused

#: Of these the entry's mapping is laid over the one of the defaults; all else replaces it.
_MERGED = ("env", "need", "parameters", "keep", "variables")
_RUNNABLE = ("entrypoint", "command")
_TIMED = ("cron", "interval", "rrule")
#: Steps of the path to a schedule: deployments, its index, schedules, its index.
_SCHEDULE = 4
#: Entrypoints that are imported at once.
_AT_ONCE = 4


@dataclass
class Loaded:
    """A file without faults: its deployments, and where each was written.

    Attributes:
        file: the name that faults are told under.
        deployments: what is to be applied.
        nodes: of each deployment its mapping, with the defaults.
    """

    file: str
    deployments: list[Named] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def only(self, names: Sequence[str]) -> Loaded:
        """With no other deployments than those."""
        return self._at([at for at, one in enumerate(self.deployments) if one.name in names])

    def once(self) -> Loaded:
        """With the first deployment of each name."""
        first = {one.name: at for at, one in reversed(list(enumerate(self.deployments)))}
        return self._at(sorted(first.values()))

    def _at(self, chosen: Sequence[int]) -> Loaded:
        return Loaded(self.file, [self.deployments[at] for at in chosen], [self.nodes[at] for at in chosen])

    def located(self, refusal: Refused) -> Exception:
        """What the server found wrong, told at lines and columns; the refusal itself if it names no place."""
        told = refusal.extra.get("faults")
        if not isinstance(told, list) or not told:
            return refusal
        return FileFaults(self.file, [self._located(one) for one in told if isinstance(one, dict)])

    def _located(self, told: dict[str, Any]) -> Fault:
        at = told.get("deployment")
        detail, remedy = str(told.get("detail", "")), str(told.get("remedy") or "")
        if not isinstance(at, int) or not 0 <= at < len(self.nodes):
            return Fault(None, (), detail, remedy)
        return fault_at(self.nodes[at], as_written(told.get("loc") or ()), detail, remedy)


class SomeFaults(FileFaults):
    """A file with faults; ``sound`` are those of its deployments that have none by themselves."""

    def __init__(self, sound: Loaded, faults: Sequence[Fault]) -> None:
        super().__init__(sound.file, faults)
        self.sound = sound


def load(path: Path, label: str, env: Mapping[str, str], *, check: bool = True) -> Loaded:
    """The deployments of a file.

    Args:
        label: the file as faults call it.
        env: what ``${NAME}`` stands for.
        check: whether what is to be run must exist here.

    Raises:
        FileFaults: everything that is wrong with it; :class:`SomeFaults` if its deployments could be told apart.
        InvalidInput: it cannot be read at all.
    """
    root, unread = read_tree(path, label, env)
    spoilt = {fault.path for fault in unread}
    form = unread + [fault for fault in _form(root) if fault.path not in spoilt]
    entries = [one for one in _items(root.value.get("deployments")) if isinstance(one.value, dict)]
    spoilt = {fault.path[:_SCHEDULE] for fault in form}
    crossed = [fault for entry in entries for fault in _crossings(entry, spoilt)]
    faults = [*form, *crossed, *_repeated(entries, "deployments")]
    unfit = {fault.path[:2] for fault in crossed}
    broken = {fault.path[:2] for fault in form}
    loaded, waiting = Loaded(label), list[Node]()
    if not any(start[:1] == ("defaults",) for start in broken):
        sound = [one for one in entries if one.path[:2] not in broken]
        waiting = [_merged(root.value.get("defaults"), one) for one in sound if _has_one(one, _RUNNABLE)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        made = pool.map(
            lambda node: deployment(
                node, path.absolute().parent, check=check, fits=node.path[:2] not in unfit
            ),
            waiting,
        )
        for node, (named, found) in zip(waiting, made, strict=True):
            faults += found
            if named is not None:
                loaded.deployments.append(named)
                loaded.nodes.append(node)
    if faults:
        raise SomeFaults(loaded, faults)
    return loaded


def read_tree(path: Path, label: str, env: Mapping[str, str]) -> tuple[Node, list[Fault]]:
    """The file's top mapping with variables in, and faults after which one can go on.

    Raises:
        FileFaults: it is not a mapping, or cannot be read as YAML or TOML.
    """
    try:
        text = read_text(path)
    except FileFaults as exc:
        raise FileFaults(label, exc.faults) from None
    root, faults = (toml_tree if path.suffix.lower() == ".toml" else yaml_tree).parse(text)
    if root is not None:
        faults += variables.substitute(root, env)
    if root is not None and isinstance(root.value, dict) and root.value:
        return root, faults
    if not faults and (root is None or root.value is None or root.value == {}):
        detail = "the file is empty"
        faults.append(Fault(None, (), detail, "`shunter init` in another folder writes one to begin with."))
    elif root is not None and not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else "one value"
        detail = f"the file is {kind}, and not a mapping with the key deployments"
        remedy = "Write `deployments:` in the first line, and the list of deployments under it."
        faults.append(Fault(root.place, (), detail, remedy))
    raise FileFaults(label, faults)


def _items(node: Node | None) -> list[Node]:
    return node.value if node is not None and isinstance(node.value, list) else []


# ---- the form


def _form(root: Node) -> Iterator[Fault]:
    """What the model says of the file as it is written."""
    try:
        File.model_validate(plain(root))
    except ValidationError as exc:
        for complaint in exc.errors(include_url=False):
            yield _complaint(root, dict(complaint))


def _complaint(root: Node, complaint: dict[str, Any]) -> Fault:
    steps = [step for step in complaint["loc"] if step != "[key]"]
    parent, _ = nearest_node(root, steps[:-1])
    detail, remedy = words(complaint, _known(steps[:-1]))
    if complaint["type"] == "extra_forbidden" or complaint["loc"][-1:] == ("[key]",):
        return Fault(parent.keys.get(str(steps[-1]), parent.place), tuple(steps), detail, remedy)
    return fault_at(root, steps, detail, remedy)


def _known(steps: Sequence[str | int]) -> list[str]:
    """The keys that the mapping at these steps may have."""
    model: type[BaseModel] = File
    for step in steps:
        if isinstance(step, str):
            model = _model_within(model.model_fields[step].annotation) or model
    return list(model.model_fields)


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_within(one) for one in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model is not None), None)


# ---- what several fields say together


def _crossings(entry: Node, spoilt: set[Steps]) -> Iterator[Fault]:
    yield from _exactly_one(entry, _RUNNABLE, "Give the one that is to be run.")
    if "python" in entry.value and "command" in entry.value:
        fault = "python is for an entrypoint", "A command names its interpreter itself."
        yield Fault(entry.keys["python"], (*entry.path, "python"), *fault)
    schedules = _items(entry.value.get("schedules"))
    if len(schedules) > SCHEDULES_LIMIT:
        return
    yield from _repeated([one for one in schedules if isinstance(one.value, dict)], "schedules")
    for node in schedules:
        if not isinstance(node.value, dict):
            continue
        yield from _exactly_one(node, _TIMED, 'For example cron: "0 6 * * *", or interval: 1h.')
        if node.path in spoilt:
            continue
        if _has_one(node, _TIMED):
            for key, detail, remedy in schedule_faults(ScheduleEntry.model_validate(plain(node))):
                yield fault_at(node, [key], detail, remedy)


def _exactly_one(node: Node, names: Sequence[str], remedy: str) -> Iterator[Fault]:
    given = [name for name in node.value if name in names]
    if len(given) == 1:
        return
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    if not given:
        yield Fault(node.place, node.path, f"there is none of {listed}", remedy)
    for name in given[1:]:
        detail = f"only one of {listed} may be given, and {given[0]} is"
        yield Fault(node.keys[name], (*node.path, name), detail, "Remove one of them.")


def _has_one(node: Node, names: Sequence[str]) -> bool:
    return sum(name in node.value for name in names) == 1


def _repeated(nodes: Sequence[Node], what: str) -> Iterator[Fault]:
    """Deployments or schedules with a name that an earlier one has."""
    seen: dict[Any, Node] = {}
    for node in nodes:
        named = node.value.get("name")
        name = named.value if named is not None else "default" if what == "schedules" else None
        if not isinstance(name, str):
            continue
        if name not in seen:
            seen[name] = node
        else:
            place = named.place if named is not None else node.place
            detail = f"two {what} are named {name!r}, the first in line {seen[name].place.line}"
            yield Fault(place, (*node.path, "name"), detail, "Give each a name of its own.")


# ---- the defaults


def _merged(defaults: Node | None, entry: Node) -> Node:
    if defaults is None:
        return entry
    shared = dict(defaults.value)
    if "command" in entry.value:
        shared.pop("python", None)
    return _over(shared, defaults, entry)


def _over(shared: dict[str, Node], below: Node, above: Node) -> Node:
    value = {**shared, **above.value}
    for key in _MERGED:
        if key in shared and key in above.value:
            value[key] = Node(
                {**shared[key].value, **above.value[key].value},
                above.value[key].place,
                above.value[key].path,
                {**shared[key].keys, **above.value[key].keys},
            )
    return Node(value, above.place, above.path, {**below.keys, **above.keys})
