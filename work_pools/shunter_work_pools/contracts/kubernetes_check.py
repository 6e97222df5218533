"""Whether a part of a manifest has fields that there are, of the types that they have. No cluster is needed for it.

Values are the API server's to judge; it does so when the Job is made.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from typing import Any

from shunter_work_pools.contracts.kubernetes_fields import FIELDS

#: Path, what is wrong, and what to do.
Fault = tuple[list[str | int], str, str]

#: Lists that a strategic merge patch merges, and the field that names their elements; all others are replaced.
#: (From the tags ``patchMergeKey`` of https://pkg.go.dev/k8s.io/api/core/v1.)
MERGE_KEYS = {
    "PodSpec.containers": "name",
    "PodSpec.initContainers": "name",
    "PodSpec.ephemeralContainers": "name",
    "PodSpec.evictionResponders": "name",
    "PodSpec.hostAliases": "ip",
    "PodSpec.imagePullSecrets": "name",
    "PodSpec.resourceClaims": "name",
    "PodSpec.schedulingGates": "name",
    "PodSpec.topologySpreadConstraints": "topologyKey",
    "PodSpec.volumes": "name",
    "Container.env": "name",
    "Container.ports": "containerPort",
    "Container.volumeDevices": "devicePath",
    "Container.volumeMounts": "mountPath",
    "ObjectMeta.ownerReferences": "uid",
}
_DIRECTIVES = ("$patch", "$retainKeys")
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d+)?", re.ASCII)
_NAMES = {"str": "a string", "int": "a whole number", "bool": "true or false", "number": "a number"}


class FaultyManifest(ValueError):
    """A part of a manifest that is none.

    Args:
        faults: all that is wrong; paths are from the part on.
    """

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(
            "; ".join(f"{'.'.join(map(str, path))}: {detail}" for path, detail, _ in faults[:10])
        )
        self.faults = faults


@functools.cache
def fields_of(kind: str) -> dict[str, str]:
    """Field -> type; empty for what is no object of known fields."""
    return dict(one.split(":", 1) for one in FIELDS.get(kind, "").split())


def merge_key(kind: str, field: str) -> str:
    """The field that names the elements of a list; empty: the list is one value."""
    return MERGE_KEYS.get(f"{kind}.{field}", "")


def check(value: Any, kind: str, *, patch: bool = False) -> None:
    """See that a value is of a type.

    Args:
        kind: a type of ``kubernetes_fields``.
        patch: it may have directives, and null where something is to be deleted.

    Raises:
        FaultyManifest: it is not.
    """
    found = list(_faults(value, kind, [], patch))
    if found:
        raise FaultyManifest(found)


def _faults(value: Any, kind: str, path: list[str | int], patch: bool) -> Iterator[Fault]:
    if kind.startswith("["):
        if not isinstance(value, list):
            yield _wrong(value, "a list", path)
            return
        for number, one in enumerate(value):
            yield from _faults(one, kind[1:-1], [*path, number], patch)
    elif kind.startswith("{"):
        if not isinstance(value, dict):
            yield _wrong(value, "an object", path)
            return
        for key, one in value.items():
            if not (patch and (one is None or key in _DIRECTIVES)):
                yield from _faults(one, kind[1:-1], [*path, key], patch)
    elif kind in FIELDS:
        yield from _object_faults(value, kind, path, patch)
    elif not _fits(value, kind):
        yield _wrong(value, _NAMES.get(kind, "a quantity, as in 500m or 2Gi"), path)


def _object_faults(value: Any, kind: str, path: list[str | int], patch: bool) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield _wrong(value, f"an object ({kind})", path)
        return
    fields = fields_of(kind)
    for key, one in value.items():
        if patch and key in _DIRECTIVES:
            continue
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            meant = f"Did you mean {near[0]}? " if near else ""
            known = ", ".join(sorted(fields))
            yield [*path, key], f"is not a field of {kind}", f"{meant}There are: {known}."
        elif not (patch and one is None):
            yield from _faults(one, fields[key], [*path, key], patch)
            if patch and merge_key(kind, key) and isinstance(one, list):
                yield from _unnamed(one, merge_key(kind, key), [*path, key])


def _unnamed(elements: list[Any], key: str, path: list[str | int]) -> Iterator[Fault]:
    for number, one in enumerate(elements):
        if isinstance(one, dict) and key not in one and one.get("$patch") != "replace":
            told = f"Give each its {key}, or put {{$patch: replace}} into the list to replace all of it."
            yield [*path, number], f"has no {key}, by which this list is merged", told


def _fits(value: Any, kind: str) -> bool:
    if kind == "any":
        return True
    if kind == "bool":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == "quantity" and isinstance(value, str):
        return _QUANTITY.fullmatch(value) is not None
    return isinstance(value, {"str": str, "int": int}.get(kind, (int, float)))


def _wrong(value: Any, wanted: str, path: list[str | int]) -> Fault:
    got = (
        "null"
        if value is None
        else f"{value!r:.60}"
        if not isinstance(value, (dict, list))
        else type(value).__name__
    )
    got = {"dict": "an object", "list": "a list"}.get(got, got)
    return path, f"must be {wanted}, not {got}", "See https://kubernetes.io/docs/reference/kubernetes-api/."
