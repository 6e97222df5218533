"""Strategic merge: a patch over a Job, with lists that are merged by the name of their elements.

https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/ says what it means;
the outcome is that of ``kubectl patch --type=strategic``, to which a test compares it. (kubectl leaves nulls and
directives in what is new in a list; here they do there what they do elsewhere.)
"""

from __future__ import annotations

import copy
from typing import Any

from shunter_work_pools.contracts.kubernetes_check import Fault, FaultyManifest, fields_of, merge_key

_DIRECTIVE, _RETAIN = "$patch", "$retainKeys"

Document = dict[str, Any]


def merged(document: Document, patch: Document, kind: str = "Job") -> Document:
    """A new document: the patch over another one.

    Args:
        kind: type of both, as in ``kubernetes_fields``.

    Raises:
        FaultyManifest: a directive that says nothing. (Fields and types are :mod:`kubernetes_check`'s.)
    """
    return _object(copy.deepcopy(document), copy.deepcopy(patch), kind, ())


def _object(old: Document, patch: Document, kind: str, path: tuple[str | int, ...]) -> Document:
    directive = patch.pop(_DIRECTIVE, None)
    if directive == "replace":
        return {key: _plain(value) for key, value in patch.items() if value is not None}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise FaultyManifest([_no_directive(directive, path)])
    _retain(old, patch, path)
    fields = fields_of(kind)
    for key, value in patch.items():
        if value is None:
            old.pop(key, None)
        elif key not in old or type(old[key]) is not type(value):
            if isinstance(value, dict) and _DIRECTIVE in value:
                old.pop(key, None)
            else:
                old[key] = _plain(value)
        elif isinstance(value, dict):
            old[key] = _object(old[key], value, fields.get(key, ""), (*path, key))
        elif isinstance(value, list) and merge_key(kind, key):
            inner = fields[key].strip("[]")
            old[key] = _list(old[key], value, inner, merge_key(kind, key), (*path, key))
        else:
            old[key] = _plain(value)
    return old


def _no_directive(said: Any, path: tuple[str | int, ...]) -> Fault:
    return [*path, _DIRECTIVE], f"{said!r} is no directive", "There are replace and delete."


def _retain(old: Document, patch: Document, path: tuple[str | int, ...]) -> None:
    kept = patch.pop(_RETAIN, None)
    if kept is None:
        return
    lost = [key for key, value in patch.items() if value is not None and key not in kept]
    if lost:
        told = f"{', '.join(lost)} is set and not in {_RETAIN}"
        raise FaultyManifest([([*path, _RETAIN], told, f"Name in {_RETAIN} all that is to stay.")])
    for key in [key for key in old if key not in kept]:
        del old[key]


def _list(
    old: list[Document], patch: list[Document], kind: str, key: str, path: tuple[str | int, ...]
) -> list[Document]:
    new = [one for one in patch if _DIRECTIVE not in one]
    directives = [one for one in patch if _DIRECTIVE in one]
    for one in directives:
        if one[_DIRECTIVE] not in ("replace", "delete"):
            raise FaultyManifest([_no_directive(one[_DIRECTIVE], path)])
    if any(one[_DIRECTIVE] == "replace" for one in directives):
        return [_plain(one) for one in new]
    gone = [one.get(key) for one in directives]
    order = [one.get(key) for one in old if one.get(key) not in gone]
    by_name = {one.get(key): one for one in old if one.get(key) not in gone}
    for one in new:
        name = one.get(key)
        by_name[name] = (
            _object(by_name[name], one, kind, (*path, str(name))) if name in by_name else _plain(one)
        )
    named = list(dict.fromkeys(one.get(key) for one in new))
    return [by_name[name] for name in _ordered([name for name in order if name not in named], named, order)]


def _ordered(others: list[Any], named: list[Any], order: list[Any]) -> list[Any]:
    """Elements that a patch names are in its order; those that it leaves alone stay before what they were before,
    and else come after."""
    made: list[Any] = []
    others, named = others.copy(), named.copy()
    while others and named:
        stays = named[0] in order and order.index(others[0]) < order.index(named[0])
        made.append((others if stays else named).pop(0))
    return made + others + named


def _plain(value: Any) -> Any:
    """Something new of a patch, without directives and without what it deletes."""
    if isinstance(value, dict):
        return {
            key: _plain(inner)
            for key, inner in value.items()
            if inner is not None and key != _RETAIN and not (isinstance(inner, dict) and _DIRECTIVE in inner)
        }
    if isinstance(value, list):
        return [_plain(one) for one in value if not (isinstance(one, dict) and _DIRECTIVE in one)]
    return value
