"""Writes ``contracts/kubernetes_fields.py`` from the models of the package ``kubernetes``.

By hand: ``python -m tests.contracts.kubernetes_client_fields``; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes
from kubernetes.client import models

PAGE = Path(__file__).parents[2] / "work_pools/shunter_work_pools/contracts/kubernetes_fields.py"

#: What no request sets: it is told by the server.
_ANSWERS = {"V1JobStatus", "V1ManagedFieldsEntry"}
#: Quantities, which the client writes as text, and the API takes as numbers, too.
_QUANTITIES = {
    ("V1ResourceRequirements", "limits"),
    ("V1ResourceRequirements", "requests"),
    ("V1VolumeResourceRequirements", "limits"),
    ("V1VolumeResourceRequirements", "requests"),
    ("V1PodSpec", "overhead"),
    ("V1EmptyDirVolumeSource", "sizeLimit"),
    ("V1ResourceFieldSelector", "divisor"),
}
_PLAIN = {"str": "str", "int": "int", "bool": "bool", "float": "number", "datetime": "str", "object": "any"}

_HEAD = '''"""The fields of a Job and of all that is in it, by type, as Kubernetes {version} has them.

Written by `python -m tests.contracts.kubernetes_client_fields` from the package kubernetes; a test compares. Each is
``name:type``: ``[X]`` is a list, ``{{X}}`` an object with any keys.
"""

from __future__ import annotations

FIELDS = {{
'''


def page() -> str:
    """The text of the file."""
    found: dict[str, dict[str, str]] = {}
    _walk("V1Job", found)
    lines = [
        f'    "{_short(name)}": "{" ".join(f"{field}:{kind}" for field, kind in sorted(fields.items()))}",'
        for name, fields in sorted(found.items(), key=lambda one: _short(one[0]))
    ]
    version = ".".join(kubernetes.__version__.split(".")[:1])
    return _HEAD.format(version=f"1.{version}") + "\n".join(lines) + "\n}\n"


def _walk(name: str, found: dict[str, dict[str, str]]) -> None:
    if name in found:
        return
    model = getattr(models, name)
    fields: dict[str, str] = {}
    found[name] = fields
    for attribute, kind in model.openapi_types.items():
        if kind.removeprefix("List[").rstrip("]") in _ANSWERS:
            continue
        field = model.attribute_map[attribute]
        fields[field] = _kind(kind, quantity=(name, field) in _QUANTITIES)
        inner = kind.removeprefix("List[").rstrip("]")
        if hasattr(models, inner):
            _walk(inner, found)


def _kind(kind: str, *, quantity: bool) -> str:
    if kind.startswith("List["):
        return f"[{_kind(kind[5:-1], quantity=quantity)}]"
    if kind.startswith("Dict["):
        return f"{{{_kind(kind[5:-1].split(', ')[1], quantity=quantity)}}}"
    if quantity:
        return "quantity"
    return _PLAIN.get(kind) or _short(kind)


def _short(model: str) -> str:
    """``V1PodSpec`` is ``PodSpec``; versions before 1 keep theirs."""
    return re.sub(r"^(Core)?V1(?=[A-Z])", "", model)


if __name__ == "__main__":
    PAGE.write_text(page())
