"""Values inside lists, tuples, sets, dicts (their values) and dataclasses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Types in which there is nothing else.
SIMPLE = frozenset({int, float, bool, str, bytes, type(None), range})


def parts_of(value: Any) -> Any:
    """What is inside a container; None: it is none."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, type):
        return None
    fields = getattr(type(value), "__dataclass_fields__", None)
    return [getattr(value, name, None) for name in fields] if fields is not None else None


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same kind with changed parts; the same one if none changes, or if it is no container."""
    if isinstance(value, dict):
        return _dict(value, {k: change(v) for k, v in value.items()})
    if isinstance(value, (list, tuple, set, frozenset)):
        return _sequence(value, [change(part) for part in value])
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None or isinstance(value, type):
        return value
    old = {name: getattr(value, name, None) for name in fields}
    return _dataclass(value, {name: new for name, part in old.items() if (new := change(part)) is not part})


def _dict(value: dict[Any, Any], new: dict[Any, Any]) -> Any:
    if all(new[k] is v for k, v in value.items()):
        return value
    if type(value) is dict:
        return new
    import copy

    other = copy.copy(value)
    other.update(new)
    return other


def _sequence(value: Any, new: list[Any]) -> Any:
    if all(a is b for a, b in zip(new, value, strict=True)):
        return value
    kind = type(value)
    if kind is list:
        return new
    return kind(*new) if hasattr(kind, "_fields") else kind(new)


def _dataclass(value: Any, changed: dict[str, Any]) -> Any:
    if not changed:
        return value
    import copy

    other = copy.copy(value)  # not by its constructor, which has been called already, with the old parts
    for name, part in changed.items():
        object.__setattr__(other, name, part)
    return other
