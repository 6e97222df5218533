"""A graph that is too wide for lanes, as a list: nodes are numbered, and each says by number what it follows.

1 ●  fetch
2 ●  left   after 1
3 ●  right  after 1
4 ●  total  after 2–3
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def numbered(
    nodes: Sequence[str], before: Mapping[str, Collection[str]], marks: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Of each node: what is drawn before its name, the node, and what it follows.

    Args:
        before: what each follows; those that are not among ``nodes`` are passed over.
        marks: one character for each.
    """
    numbers = {node: at for at, node in enumerate(nodes, 1)}
    digits = len(str(len(nodes)))
    return [
        (
            f"{at:>{digits}} {marks[node]}",
            node,
            _after(sorted(numbers[one] for one in before[node] if one in numbers)),
        )
        for node, at in numbers.items()
    ]


def _after(numbers: Sequence[int]) -> str:
    """Numbers in words, those that follow each other as one: ``after 1–3, 7``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    found = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
    return f"after {found}" if found else ""
