"""What a deploy changes, field by field, in the words of a deployment file.

``+ hello (new)``, ``~ etl (revision 3 -> 4)`` and ``= hi (unchanged)``; below, a line for each field that is
other than before. Fields that are as nobody said anything are left out of what is new.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shunter_cli import durations, output
from shunter_cli.secret_words import origin
from shunter_work_pools.contracts.capacity import amount_shown
from shunter_work_pools.contracts.deployments import Change, DeploymentSpec, Named
from shunter_work_pools.contracts.plain_text import plain
from shunter_work_pools.contracts.sizes import size

#: Fields, by the last step of their name, that are seconds.
_DURATIONS = frozenset(
    (
        *("timeout", "start_timeout", "grace", "delay", "max_delay", "interval", "jitter", "catch_up_age"),
        *("runs_for", "logs_for", "events_for"),
    )
)
_MARKS = {"created": ("+", "green"), "changed": ("~", "yellow"), "unchanged": ("=", "bright_black")}
_USUAL: dict[str, Any] = {
    "timezone": "UTC",
    "day": "or",
    "paused": False,
    "jitter": 0.0,
    "catch_up": "all",
    "catch_up_age": 86_400.0,
    "catch_up_slots": 100,
}
_NEVER = object()
_INDENT = "    "
#: Mappings that are one field for each value.
_SPREAD = ("need", "retries", "env", "keep", "parameters", "parameter_schema", "variables")
#: The same, where they are one; they stay where they are among the others.
_CODE = ("source", "environment")


@dataclass(frozen=True)
class Field:
    """A field that is other than before; None: it has no value."""

    name: str
    before: Any
    after: Any


def fields(before: DeploymentSpec | None, after: DeploymentSpec) -> list[Field]:
    """What is other in ``after``; of what is new, without what is as if nobody had said anything."""
    unsaid = DeploymentSpec.model_validate({"work": {"command": ["-"]}})
    old, new = _flat(before or unsaid), _flat(after)
    if before is None:
        old["command"] = None
    names = [*new, *(name for name in old if name not in new)]
    found = [Field(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
    found = [field for field in found if not _is_usual(field)]
    if before is None:
        return [Field(field.name, None, field.after) for field in found if field.after is not None]
    if not found and before != after:  # the same schedules in another order
        order = [[one.name for one in spec.schedules] for spec in (before, after)]
        found.append(Field("schedules", *order))
    return found


def data(named: Sequence[Named], changes: Sequence[Change]) -> list[dict[str, Any]]:
    """The changes for programs: values of JSON, durations in seconds."""
    return [
        change.model_dump(mode="json", exclude={"before"})
        | {
            "fields": [
                {"field": field.name, "before": field.before, "after": field.after}
                for field in fields(change.before, one.spec)
            ]
        }
        for one, change in zip(named, changes, strict=True)
    ]


def show(named: Sequence[Named], changes: Sequence[Change]) -> None:
    """Print the changes for people, as wide as the terminal, in colours if it has them."""
    from rich.text import Text

    terminal = output.console()
    with terminal.capture() as captured:
        for one, change in zip(named, changes, strict=True):
            mark, colour = _MARKS[change.change]
            terminal.print(Text(f"{mark} {change.name} ({_in_words(change)})", colour), soft_wrap=True)
            for field in fields(change.before, one.spec):
                if change.before is None and field.name.startswith("parameter_schema."):
                    continue  # it was read from the entrypoint: nobody wrote it
                for line in _lines(field, change.before is None, terminal.width):
                    terminal.print(line, soft_wrap=True)
    output.say_drawn(captured.get().rstrip("\n"))


def _in_words(change: Change) -> str:
    if change.change == "created":
        return "new"
    if change.change == "unchanged":
        return "unchanged"
    return f"revision {change.revision - 1} -> {change.revision}"


# ---- specs as flat fields


def _flat(spec: DeploymentSpec) -> dict[str, Any]:
    """Field by name, as a file calls them; None: it has no value."""
    found = spec.model_dump(mode="json")
    top = found.pop("work") | found
    schedules = top.pop("schedules")
    rows: dict[str, Any] = {}
    for name, value in top.items():
        if name not in _SPREAD:
            rows |= dict(_spread(name, value)) if name in _CODE else {name: value}
    for name in _SPREAD:
        if name == "env":  # where one comes from is one value
            rows |= {f"env.{variable}": value for variable, value in top[name].items()}
        else:
            rows |= dict(_spread(name, top[name]))
    for one in schedules:
        rows |= dict(_schedule(f"schedules.{one.pop('name')}", one))
    return {name: None if value in (None, [], {}, "") else value for name, value in rows.items()}


def _schedule(path: str, one: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    when = one.pop("when")
    kind = when.pop("kind")
    yield f"{path}.{kind}", when.pop("seconds" if kind == "interval" else kind)
    for name, value in when.items():
        yield f"{path}.{name}", value
    yield from _spread(f"{path}.parameters", one.pop("parameters"))
    for name, value in one.items():
        yield f"{path}.{name}", value


def _spread(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A mapping as one field for each of its values."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, one in value.items():
        yield from _spread(f"{path}.{key}", one)


def _is_usual(field: Field) -> bool:
    """Whether it belongs to a schedule that is there on one side only, and is as nobody said anything."""
    path, _, last = field.name.rpartition(".")
    if not path.startswith("schedules.") or ".parameters" in path:
        return False
    one = field.after if field.before is None else field.before
    return (field.before is None or field.after is None) and _USUAL.get(last, _NEVER) == one


# ---- lines


def _lines(field: Field, is_new: bool, width: int) -> Iterator[Any]:
    """``name: before -> after``, on several lines if that is too wide."""
    from rich.text import Text

    name = plain(field.name)
    before, after = _value(field.name, field.before), _value(field.name, field.after)
    line = f"{_INDENT}{name}: {after}" if is_new else f"{_INDENT}{name}: {before} -> {after}"
    if len(line) <= width:
        yield Text(line)
        return
    yield Text(f"{_INDENT}{name}:")
    signs = (("+", after, "green"),) if is_new else (("-", before, "red"), ("+", after, "green"))
    for sign, text, colour in signs:
        for at, part in enumerate(_wrapped(text, width - len(_INDENT) - 4)):
            yield Text(f"{_INDENT}  {sign if at == 0 else ' '} {part}", "" if is_new else colour)


def _wrapped(text: str, width: int) -> list[str]:
    width = max(width, 20)
    return [text[at : at + width] for at in range(0, len(text), width)] or [""]


def _value(name: str, value: Any) -> str:
    if value is None:
        return "(none)"
    if name.startswith("env."):
        if isinstance(value, dict):
            return origin(value)
        return "(hidden)"  # what people print goes into logs, and variables hold passwords
    last = name.rpartition(".")[2]
    spoken = not name.startswith("parameters.") and ".parameters." not in name
    if spoken and last in _DURATIONS and isinstance(value, float):
        return durations.exactly(value)
    if name == "memory_limit":
        return size(value)
    if name.startswith("need."):
        return amount_shown(name.removeprefix("need."), value)
    if name == "command":
        value = shlex.join(value)
        return plain(value)
    return plain(output.compact(value))
