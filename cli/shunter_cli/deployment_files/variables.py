"""Variables of the environment in texts: ``${NAME}``, ``${NAME:-default}``, and ``$$`` for a dollar.

They are put in after the file was parsed, each once, and into texts only: whatever a variable holds, it
stays one text and becomes neither a key nor a list nor another variable. A lone ``$`` is itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from shunter_cli.deployment_files.places import Fault, Node

#: Characters of all texts together, once variables are in.
TEXT_LIMIT = 10 * 1024 * 1024
_DOLLAR = re.compile(r"\$\$|\$\{([^{}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def substitute(root: Node, env: Mapping[str, str]) -> list[Fault]:
    """Put variables into all texts of a tree, in place, and return what is wrong with them."""
    faults: list[Fault] = []
    seen: set[int] = set()
    total = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node.value, dict):
            waiting += node.value.values()
        elif isinstance(node.value, list):
            waiting += node.value
        elif isinstance(node.value, str):
            if id(node) not in seen:  # an alias is the same node again
                seen.add(id(node))
                faults += _into(node, env)
            total += len(node.value)
            if total > TEXT_LIMIT:
                detail = f"with its variables the file has more than {TEXT_LIMIT // 1024**2} MiB of text"
                return [*faults, Fault(node.place, node.path, detail, "Set shorter variables.")]
    return faults


def _into(node: Node, env: Mapping[str, str]) -> list[Fault]:
    faults: list[Fault] = []

    def fault(detail: str, remedy: str) -> str:
        faults.append(Fault(node.place, node.path, detail, remedy))
        return ""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            return fault("${ is not closed by }, or has { inside", "Write $${ for the text itself.")
        name, dash, default = match[1].partition(":-")
        if not _NAME.fullmatch(name):
            return fault(f"${{{match[1]}}} names no variable", "Write ${NAME}, ${NAME:-default}, or $${.")
        node.substituted = True
        text = env.get(name, "")
        if not text and dash:
            return default
        if name not in env:
            return fault(
                f"the variable {name} is not set", f"Set it, or give a default: ${{{name}:-default}}."
            )
        if _is_unreadable(text):
            return fault(f"the variable {name} is not UTF-8", "Set it to readable text.")
        return text

    node.value = _DOLLAR.sub(one, node.value)
    return faults


def _is_unreadable(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)
