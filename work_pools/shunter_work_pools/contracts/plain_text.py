"""Text that somebody else wrote, so that it can do no more than be read."""

from __future__ import annotations


def plain(text: str, *, lines: bool = False) -> str:
    """Text that cannot steer a terminal: what is not printable is shown as an escape.

    That is control characters (ESC, BEL, backspace, C1), marks that turn the direction of text or show nothing,
    and lone surrogates.

    Args:
        lines: line ends stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or (lines and char == "\n") else char.encode("unicode_escape").decode()
        for char in text
    )
