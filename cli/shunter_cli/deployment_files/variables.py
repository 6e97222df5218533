"""Variables of the environment in texts: ``${NAME}``, ``${NAME:-default}``, and ``$$`` for a dollar.

They are put in after the file was parsed, each once, and into texts only: whatever a variable holds, it
stays one text and becomes neither a key nor a list nor another variable. A lone ``$`` is itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shunter_cli.deployment_files.places import Fault, Node

#: Characters of all texts together, once variables are in.
TEXT_LIMIT = 10 * 1024 * 1024
_DOLLAR = re.compile(r"\$\$|\$\{([^{}]*)\}|\$\{")
_HALF = re.compile("[\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def substitute(root: Node, env: Mapping[str, str]) -> list[Fault]:
    """Put variables into all texts of a tree, in place, and return what is wrong with them."""
    putting = _Putting(env)
    seen: set[int] = set()
    waiting = [root]
    while waiting and putting.left >= 0:
        node = waiting.pop()
        if isinstance(node.value, dict):
            waiting += node.value.values()
        elif isinstance(node.value, list):
            waiting += node.value
        elif isinstance(node.value, str) and id(node) in seen:  # an alias: the same node again
            putting.spend(node, len(node.value))
        elif isinstance(node.value, str):
            seen.add(id(node))
            putting.spend(node, len(node.value))
            putting.into(node)
    return putting.faults


@dataclass
class _Putting:
    """Puts variables into one text after the other; ``left``: characters that there may still be."""

    env: Mapping[str, str]
    faults: list[Fault] = field(default_factory=list)
    left: int = TEXT_LIMIT

    def into(self, node: Node) -> None:
        node.value = _DOLLAR.sub(lambda match: self._one(node, match), node.value)

    def spend(self, node: Node, characters: int) -> None:
        if self.left >= 0 > self.left - characters:
            detail = f"with its variables the file has more than {TEXT_LIMIT // 1024**2} MiB of text"
            self._fault(node, detail, "Set shorter variables.")
        self.left -= characters

    def _one(self, node: Node, match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            return self._fault(
                node, "${ is not closed by }, or has { inside", "Write $${ for the text itself."
            )
        name, dash, default = match[1].partition(":-")
        if not _NAME.fullmatch(name):
            detail = f"${{{match[1]}}} names no variable"
            return self._fault(node, detail, "Write ${NAME}, ${NAME:-default}, or $${ for the text itself.")
        node.substituted = True
        text = self.env.get(name, "") or default
        if name not in self.env and not dash:
            remedy = f"Set it, or give a default: ${{{name}:-default}}."
            return self._fault(node, f"the variable {name} is not set", remedy)
        self.spend(node, len(text))
        if self.left < 0:  # nothing more is looked at
            return ""
        if _HALF.search(text):
            return self._fault(node, f"the variable {name} is not UTF-8", "Set it to readable text.")
        return text

    def _fault(self, node: Node, detail: str, remedy: str) -> str:
        self.faults.append(Fault(node.place, node.path, detail, remedy))
        return ""
